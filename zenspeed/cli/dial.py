"""The dial of `zenspeed train`: how it is asked for, and the run that it leads to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zenspeed.cli.app import recipe_of
from zenspeed.cli.chosen import TABLES
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.dial.choose import Chosen
    from zenspeed.recipe import Recipe
    from zenspeed.training import Result

_OPTIONS = ("--budget", "--target-loss", "--memory", "--max-parameters")


def asked(source: str | None, sets: list[str], task: str | None, arguments: list[str], *ends: str | None) -> bool:
    """Whether the dial is to choose: one of its ends is given, or nothing is but a text and perhaps a time.

    Raises:
        InputError: an end is given beside a task, which chooses otherwise.
    """
    given = [name for name, value in zip(_OPTIONS, ends, strict=True) if value is not None]
    if given:
        if task is not None or arguments:
            option = "--task" if task is not None else arguments[0]
            raise InputError(f"{given[0]}: is for language models; {option} chooses for a task by itself; give one of them")
        return True
    if task is not None or arguments or source is None or source.endswith((".yaml", ".yml")):
        return False
    from zenspeed.data.streams import suffix_of
    from zenspeed.dial.draft import is_plain

    table = suffix_of(Path(source)) in TABLES or source.startswith("hf:")
    return not table and is_plain(recipe_of(source, sets))


def _launched(chosen: Chosen) -> Result:
    """The run in processes that the launcher starts and keeps going; it ends when this process should have ended.

    Raises:
        typer.Exit: the launcher gave up, with its code; it has said why.
    """
    from zenspeed.config import dump, validate
    from zenspeed.launch.train import supervise
    from zenspeed.launch.workers import launch_workers
    from zenspeed.machine import process_age_seconds
    from zenspeed.recipe import Recipe, fresh_folder
    from zenspeed.runlog import read_metrics
    from zenspeed.training import Result

    data = chosen.recipe.model_dump(mode="json")
    data["run"]["folder"] = str(chosen.recipe.run.folder or fresh_folder(chosen.recipe))
    data["train"]["minutes"] = max(1.0, chosen.seconds - process_age_seconds()) / 60  # its processes' ages begin now
    recipe = validate(Recipe, data)
    assert recipe.run.folder is not None
    with tempfile.TemporaryDirectory(prefix="zenspeed-dial-") as place:
        file = Path(place) / "recipe.yaml"
        file.write_text(dump(recipe), encoding="utf-8")
        if recipe.parallel.mode == "parameter_server":
            code = launch_workers(chosen.processes, ["train", str(file)], recipe, max_restarts=3)
        else:
            code = supervise(chosen.processes, "train", [str(file)], least=1, restarts=3)
    if code not in (0, 130):
        raise typer.Exit(code)
    records = read_metrics(recipe.run.folder) if code == 0 else []
    step = records[-1]["step"] if records else 0
    # The leading one of its processes has reported.
    return Result(recipe.run.folder, step, None, interrupted=code == 130, leads=False)


def dialled(
    recipe: Recipe,
    budget: str | None,
    target: str | None,
    memory: str | None,
    parameters: str | None,
    prepare_meanwhile: Callable[[Recipe], BaseProcess | None],
) -> Result:
    """The run of a recipe that the dial completes; says what is chosen and why, and at the end whether a target was reached."""
    from zenspeed.dial.draft import draft
    from zenspeed.dial.ends import ends_of

    drafted = draft(recipe, ends_of(budget, target, memory, parameters))
    preparing = prepare_meanwhile(drafted.recipe)
    from zenspeed.dial.choose import choose
    from zenspeed.display import Display
    from zenspeed.machine import process_began
    from zenspeed.parallel.mesh import world
    from zenspeed.server.run import train
    from zenspeed.training import set_threads

    if preparing is not None:
        preparing.join()
    with world() as here:
        set_threads(here)
        display = Display(enabled=here.rank == 0)
        chosen = choose(drafted.recipe, drafted.given, drafted.ends, here, display.say)
        for line in chosen.lines:
            display.say(line)
        alone = chosen.processes == here.size
        result = train(chosen.recipe, display=display, began=process_began()) if alone else None
        display.close()
    if result is None:
        result = _launched(chosen)
    if not result.interrupted and os.environ.get("RANK", "0") == "0":
        from zenspeed.runlog import read_metrics

        print("\n".join(chosen.outcome(read_metrics(result.folder)[-1], drafted.ends)))
    return result

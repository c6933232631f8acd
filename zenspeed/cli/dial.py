"""The dial of `zenspeed train`: how it is asked for, and the run that it leads to."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from zenspeed.cli.app import recipe_of
from zenspeed.cli.chosen import TABLES
from zenspeed.errors import InputError

if TYPE_CHECKING:
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
    from zenspeed.parallel.mesh import world
    from zenspeed.training import set_threads, train

    if preparing is not None:
        preparing.join()
    with world() as here:
        set_threads(here)
        display = Display(enabled=here.rank == 0)
        chosen = choose(drafted.recipe, drafted.given, drafted.ends, here, display.say)
        for line in chosen.lines:
            display.say(line)
        result = train(chosen.recipe, display=display)
    if not result.interrupted and os.environ.get("RANK", "0") == "0":
        from zenspeed.runlog import read_metrics

        print("\n".join(chosen.outcome(read_metrics(result.folder)[-1], drafted.ends)))
    return result

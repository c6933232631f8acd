"""train, resume, prepare."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.cli.app import CheckpointName, RunFolder, Sets, Source, app, recipe_of
from zenspeed.cli.chosen import TaskName, recipe_or_chosen
from zenspeed.errors import InputError, missing

if TYPE_CHECKING:
    from zenspeed.recipe import Recipe
    from zenspeed.server.run import Place

ServerAddresses = Annotated[list[str] | None, typer.Option("--server", hidden=True)]  # of a launched worker
ServerKey = Annotated[Path | None, typer.Option("--server-key", hidden=True)]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    source: Source = None,
    sets: Sets = None,
    task: TaskName = None,
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in run.folder where it has begun: for jobs that are restarted.")
    ] = False,
    servers: ServerAddresses = None,
    server_key: ServerKey = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="10m, 1h30m: chooses all that is not given, to the best use of this time."),
    ] = None,
    target_loss: Annotated[
        str | None, typer.Option(metavar="BITS", help="Bits per byte of held-out text to reach, in the least time.")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="With a budget: 2GB, memory of a process at most.")] = None,
    max_parameters: Annotated[
        str | None, typer.Option(metavar="COUNT", help="With a budget: 5M, weights of the model at most.")
    ] = None,
) -> None:
    """Train a model from a text, a table or a recipe.

    With a text and a time, or nothing else, all is chosen by what this machine does in that time (docs/dial.md).

    With a table, its columns are named by options of the task: --text review --label sentiment, --target summary, --question,
    --context … (every key of a recipe's task section is one). Tokenizer, model, lengths, batch and schedule are then chosen
    from the data, and said; --set changes any of them.
    """
    from zenspeed.cli.dial import asked, dialled

    if asked(source, sets or [], task, context.args, budget, target_loss, memory, max_parameters):
        recipe = recipe_of(source, sets)
        if not (go_on and _go_on(recipe.run.folder, sets, storage=recipe.run.storage)):
            _report(dialled(recipe, budget, target_loss, memory, max_parameters, _prepare_meanwhile))
        return
    recipe = recipe_or_chosen(source, sets or [], task, context.args)
    if go_on and _go_on(recipe.run.folder, sets, storage=recipe.run.storage, servers=_place(servers, server_key)):
        return
    preparing = _prepare_meanwhile(recipe) if not servers else None
    from zenspeed.machine import process_began
    from zenspeed.server.run import train as run

    if preparing is not None:
        preparing.join()
    _report(run(recipe, servers=_place(servers, server_key), began=process_began()))


def _place(servers: list[str] | None, key: Path | None) -> Place | None:
    from zenspeed.server.client import read_key
    from zenspeed.server.run import Place

    return Place(servers, read_key(key)) if servers and key is not None else None


def _prepare_meanwhile(recipe: Recipe) -> multiprocessing.process.BaseProcess | None:
    """Prepares the data in a process of its own while this one imports torch: the first step comes two seconds earlier.

    The process is forked before torch is there. What goes wrong in it is not lost: training prepares again, finds the data
    done or meets the same error. None where another rank does it, or where processes cannot be forked.
    """
    if recipe.task.kind != "language_model":
        return None
    if os.environ.get("RANK", "0") != "0" or "fork" not in multiprocessing.get_all_start_methods():
        return None
    process = multiprocessing.get_context("fork").Process(target=_prepare_quietly, args=(recipe,), daemon=True)
    process.start()
    return process


def _prepare_quietly(recipe: Recipe) -> None:
    from zenspeed.data.prepare import prepare as run

    with contextlib.suppress(InputError, KeyboardInterrupt):
        run(recipe, lambda message: print(message, flush=True))


@app.command()
def resume(
    run: RunFolder,
    checkpoint: CheckpointName = None,
    sets: Sets = None,
    servers: ServerAddresses = None,
    server_key: ServerKey = None,
) -> None:
    """Go on with a run from its last checkpoint."""
    if not _go_on(run, sets, checkpoint, servers=_place(servers, server_key)):
        raise missing(run, "run", "holds no complete checkpoint" if run.exists() else None)


def _go_on(
    folder: Path | None,
    sets: list[str] | None,
    checkpoint: str | None = None,
    storage: str | None = None,
    servers: Place | None = None,
) -> bool:
    """Trains on from a checkpoint; false where there is none."""
    from zenspeed.machine import process_began
    from zenspeed.run import begun
    from zenspeed.server.run import train as run

    found = begun(folder, sets or (), checkpoint, storage)
    if found is None:
        return False
    _report(run(found.recipe, resume=found.checkpoint, servers=servers, began=process_began()))
    return True


def _report(result: object) -> None:
    from zenspeed.training import Result

    assert isinstance(result, Result)
    if result.interrupted:
        raise typer.Exit(130)
    folder = result.folder
    if result.leads and os.environ.get("RANK", "0") == "0":
        files = [name for name in ("samples.md", "predictions.jsonl") if (folder / name).exists()]
        written = "".join(f"  {Path(name).stem:<11} {folder / name}\n" for name in files)
        more = f'\n  zenspeed generate {folder} --prompt "Return the"' if "samples.md" in files else ""
        print(f"""
run      {folder}
  loss curve  {folder / "loss.svg"}
  report      {folder / "report.html"}
{written}  recipe      {folder / "recipe.yaml"}
  metrics     {folder / "metrics.jsonl"}
go on with
  zenspeed resume {folder} --set train.steps={2 * result.step}
  zenspeed evaluate {folder}{more}""")


@app.command()
def prepare(source: Source = None, sets: Sets = None) -> None:
    """Train the tokenizer and write the token shards that training reads; training does this by itself when needed."""
    recipe = recipe_of(source, sets)
    if recipe.task.kind != "language_model":
        raise InputError(f"prepare: rows of {recipe.task.kind} are encoded when training starts; go straight to zenspeed train")
    from zenspeed.data.prepare import prepare as run

    prepared = run(recipe, print)
    print(f"{prepared.folder}: {prepared.train.num_tokens:,} tokens to train on, {prepared.validation.num_tokens:,} held out")

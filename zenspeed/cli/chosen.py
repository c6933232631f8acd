"""The recipe of a verb that takes a file of one, or data and the names of its columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.cli.app import recipe_of
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.recipe import Recipe

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
TaskName = Annotated[
    str | None, typer.Option("--task", help="classification, seq2seq …: chooses all the rest by itself, from the data.")
]


def recipe_or_chosen(source: str | None, sets: list[str], task: str | None, arguments: list[str]) -> Recipe:
    """The recipe of a file; or, for a table and where options speak of a task, one that is chosen from the data."""
    keys = _task_keys(arguments)
    is_recipe = source is not None and source.endswith((".yaml", ".yml"))
    if is_recipe or source is None:
        if task is not None or keys:
            option = "--task" if task is not None else f"--{next(iter(keys))}"
            raise InputError(f"{option}: is for data; a recipe has --set task.… (give DATA instead of it, with --task NAME)")
        return recipe_of(source, sets)
    from zenspeed.data.streams import suffix_of

    table = suffix_of(Path(source)) in TABLES or source.startswith("hf:")
    if task is None and not keys and (not table or any(part.startswith("task.") for part in sets)):
        return recipe_of(source, sets)
    from zenspeed.config import load
    from zenspeed.recipe import Recipe
    from zenspeed.tasks.choose import choose

    chosen = choose(source, task, keys, sets)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(chosen.lines), flush=True)
    return load(Recipe, None, sets, base=chosen.recipe)


def _task_keys(arguments: list[str]) -> dict[str, str]:
    """`--text review --label=sentiment` as keys of the task section; others are refused."""
    keys: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not separator and not rest):
            raise InputError(f"{name}: unexpected; columns are named by --text COLUMN, keys are set by --set SECTION.KEY=VALUE")
        keys[name.removeprefix("--").replace("-", "_")] = value if separator else rest.pop(0)
    return keys

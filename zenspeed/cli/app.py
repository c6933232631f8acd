"""The typer app and what its verbs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.errors import InputError, missing

if TYPE_CHECKING:
    from zenspeed.recipe import Recipe

app = typer.Typer(
    help="Train a language model and put it to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[
    str | None, typer.Argument(help="A recipe (.yaml), or a text: file, folder, glob, python-docs.", show_default=False)
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Changes any key of the recipe.")]


def run_here(run: Path | None) -> Path | None:
    """The folder of a run; one that is named by its address in object storage is fetched into runs/."""
    scheme, separator, rest = str(run).partition(":/")  # of the two slashes a Path keeps one
    if not separator or "/" in scheme:
        return run
    from zenspeed.runstore import local_run

    return local_run(f"{scheme}://{rest}")


RunFolder = Annotated[Path, typer.Argument(callback=run_here, help="A run's folder, or s3://bucket/run.", show_default=False)]
CheckpointName = Annotated[str | None, typer.Option(help="latest, best, or a step's folder; default: latest.")]


def recipe_of(source: str | None, sets: list[str] | None) -> Recipe:
    """The recipe of a file, or the default one over a text."""
    from zenspeed.config import load
    from zenspeed.recipe import Recipe

    if source is None or not source.endswith((".yaml", ".yml")):
        return load(Recipe, None, sets or [], base={"data": {"source": source}} if source else {})
    if not Path(source).exists():
        raise missing(source, "recipe")
    return load(Recipe, Path(source), sets or [])


def write_json(path: Path | None, content: object) -> None:
    """Writes `content` to `path`, if there is one."""
    if path is None:
        return
    from zenspeed.config import write_atomically

    try:
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None

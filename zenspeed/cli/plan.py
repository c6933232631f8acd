"""plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import Sets, Source, app, recipe_of, write_json
from zenspeed.errors import InputError


@app.command()
def plan(
    source: Source = None,
    sets: Sets = None,
    on: Annotated[str, typer.Option(help="8xH100, a cluster's .yaml file, or this: this machine, measured.")] = "this",
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes, with --on this and --dry-run.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, help="Tokens to train on; default: the recipe's steps.")] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option("--layout", metavar="KEY=VALUE", help="One layout of your own: tensor=8, recompute=full."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and run the sharded model without data or memory.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the plan to this file.")] = None,
) -> None:
    """Before a launch: memory and time of a recipe on a cluster, the best layouts, and what would make it fit."""
    recipe = recipe_of(source, sets)
    from zenspeed.plan import page
    from zenspeed.plan.advise import plan as make_plan
    from zenspeed.plan.advise import plan_here, vocabulary
    from zenspeed.plan.hardware import cluster_of

    if recipe.model.huggingface is not None or recipe.model.from_run is not None:
        from zenspeed.tasks.models import adopt_pretrained

        recipe = adopt_pretrained(recipe, print)
    if tokens is not None and math.isinf(tokens):
        raise InputError("--tokens inf: would never end; write --tokens 1e9")
    if dry_run:
        if on != "this" or layout:
            raise InputError(
                "--dry-run: builds the recipe's own layout on any number of ranks; write --ranks 8, not --on or --layout"
            )
        from zenspeed.plan.dry_run import dry_run as run

        found = run(recipe, vocabulary(recipe), ranks or 8)
        page.show_dry_run(found)
        write_json(json_path, found._asdict() | {"calls": [c._asdict() for c in found.calls]})
        return
    if ranks is not None and on != "this":
        raise InputError(f"--ranks {ranks}: is for --on this and --dry-run; write --on {ranks}xNAME")
    if layout and on == "this":
        raise InputError("--layout: this machine is measured as the recipe says; give --on COUNTxNAME, or change the recipe")
    made = plan_here(recipe, ranks or 1, tokens) if on == "this" else make_plan(recipe, cluster_of(on), tokens, layout)
    page.show(made)
    write_json(json_path, page.as_dict(made))

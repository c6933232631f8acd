"""crossval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import Sets, Source, app
from zenspeed.cli.chosen import TaskName, recipe_or_chosen


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def crossval(
    context: typer.Context,
    source: Source = None,
    sets: Sets = None,
    task: TaskName = None,
    num_folds: Annotated[int, typer.Option("--folds", min=2, help="Folds.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Times it is done, dealt anew each time.")] = 1,
    group_by: Annotated[str | None, typer.Option(help="Column whose equal values are tested together.")] = None,
    stratify: Annotated[bool, typer.Option(help="Each label in equal shares in every fold (classification).")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the dealing.")] = 1,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Folds at once; default: one a core.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where it is written; default: runs/crossval-NAME.")] = None,
) -> None:
    """Train and test on every fold of the rows: figures as mean over folds and over all rows, with intervals.

    Of a recipe, or of a table whose columns are named as for train: --text review --label sentiment.
    """
    from zenspeed.crossval import Plan
    from zenspeed.crossval import crossval as run
    from zenspeed.evaluate.score import figure_from, lines_of
    from zenspeed.report.page import evaluation_page, write_page

    recipe = recipe_or_chosen(source, sets or [], task, context.args)
    place = folder or Path("runs") / f"crossval-{Path(recipe.data.source).stem.strip('*') or 'rows'}"
    found = run(recipe, Plan(place, num_folds, repeats, group_by, stratify, seed, jobs), print)
    print(f"\nmean over {num_folds * repeats} folds")
    width = max(len(f["name"]) for f in found["figures"])
    for f in found["figures"]:
        print(f"{f['name']:<{width}}  {figure_from(f)}")
    if found["pooled"] is not None:
        over_all = {**found["pooled"], "figures": [f for f in found["pooled"]["figures"] if f["slice"] == "all"]}
        print("\nall rows, each answered by the model that had not seen it")
        print("\n".join(lines_of(over_all)))
        page = write_page(place / "report.html", evaluation_page(found["pooled"], f"zenspeed crossval … --folder {place}"))
        print(f"\n{place / 'crossval.json'}, {page}")

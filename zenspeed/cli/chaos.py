"""chaos."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import Sets, Source, app, recipe_of, write_json


@app.command()
def chaos(
    source: Source = None,
    sets: Sets = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs, each with one fault; the kinds take turns.")] = 14,
    seed: Annotated[int, typer.Option(help="Of rank, step and moment of each fault.")] = 1,
    ranks: Annotated[int, typer.Option(min=2, help="Processes of a run.")] = 3,
    fault: Annotated[list[str] | None, typer.Option(help="Only this kind of fault; may be given several times.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where runs are written; default: runs/chaos-….")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here as well.")] = None,
) -> None:
    """Break a small run on purpose, again and again, and check that it keeps its promises."""
    from zenspeed.chaos.run import chaos as run
    from zenspeed.chaos.run import table

    place = folder or Path("runs") / f"chaos-{time.strftime('%Y%m%d-%H%M%S')}"
    report = run(recipe_of(source, sets), place, runs, seed, ranks, lambda line: print(line, flush=True), fault or ())
    write_json(json, report)
    print(f"\n{table(report)}\n\n{report['kept']} of {runs} runs kept all promises; each of them: {place / 'chaos.json'}")
    if report["kept"] != runs:
        raise typer.Exit(1)

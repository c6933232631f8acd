"""report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import app, run_here
from zenspeed.errors import missing


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run's folder, or s3://bucket/run; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; default: report.html of the run, or comparison.html here.")
    ] = None,
) -> None:
    """One HTML page of a run, or of several beside each other."""
    from zenspeed.report.page import compare_runs, write_page

    runs = [run_here(run) or run for run in runs]
    for folder in runs:
        if not folder.is_dir():
            raise missing(folder, "run")
    path = output or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    print(write_page(path, compare_runs(runs)))

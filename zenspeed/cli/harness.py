"""harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import CheckpointName, app, run_here, write_json


@app.command()
def harness(
    run: Annotated[
        Path, typer.Argument(callback=run_here, help="A run's folder, or one of Hugging Face layout.", show_default=False)
    ],
    tasks: Annotated[list[str], typer.Option("--tasks", help="Names of lm-evaluation-harness, or task files (.yaml).")],
    include: Annotated[Path | None, typer.Option(help="A folder with more task files.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    checkpoint: CheckpointName = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the results to this file.")] = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a language model (needs the extra harness)."""
    from zenspeed.harness import run_harness

    found = run_harness(run, tasks, include=include, limit=limit, num_fewshot=num_fewshot, checkpoint=checkpoint)
    for task, figures in found["results"].items():
        for name, value in figures.items():
            if "," in name and "_stderr" not in name:
                error = figures.get(name.replace(",", "_stderr,"))
                print(f"{task}  {name.split(',')[0]}  {value}" + (f"  ± {error:.4f}" if isinstance(error, float) else ""))
    write_json(json_path, found)

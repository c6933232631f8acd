"""evaluate, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import CheckpointName, app, write_json
from zenspeed.errors import InputError


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Data to evaluate on; default: the run's own validation split.")] = None,
    checkpoint: CheckpointName = None,
    predictions: Annotated[Path | None, typer.Option(help="JSON lines of predictions to score, without a model.")] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="With --predictions: a column whose values get figures of their own.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the figures to this file.")] = None,
) -> None:
    """Figures over the whole held-out data, or of a file of predictions, with 95 % intervals."""
    if (run is None) == (predictions is None):
        raise InputError("evaluate: give a run's folder, or --predictions FILE; one of them")
    if predictions is not None:
        from zenspeed.evaluate.score import Options, lines_of, score_file

        found = score_file(predictions, Options(slices=slices or []))
        print("\n".join(lines_of(found)))
        write_json(json_path, found)
        return
    if slices:
        raise InputError("--slice: is for --predictions; score the run's predictions.jsonl")
    assert run is not None
    from zenspeed.tasks.evaluate import evaluate_run

    figures = evaluate_run(run, data, checkpoint)
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure}")
    n = next(iter(figures.values())).n
    print(f"95 % intervals by bootstrap over {n:,} texts (seed 0)")
    print("\n".join(f"{name}: {figure.definition}" for name, figure in figures.items()))
    write_json(json_path, {k: v._asdict() for k, v in figures.items()})


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Files of predictions, or runs that hold predictions.jsonl.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the comparisons to this file.")] = None,
) -> None:
    """Whether one system is better than another on the same rows: effect, interval, exact test."""
    from zenspeed.evaluate.compare import compare_files

    found = compare_files(files)
    print("\n".join(map(str, found)))
    matched = ", ".join(sorted({c.matched_by for c in found}))
    print(
        f"rows matched by {matched}; McNemar's exact test, p corrected for {len(found)} comparisons (Holm); bootstrap, seed 0"
    )
    write_json(json_path, [c._asdict() for c in found])

"""evaluate, compare."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zenspeed.cli.app import CheckpointName, Sets, app, run_here, write_json
from zenspeed.errors import InputError


@app.command()
def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(callback=run_here, help="A run's folder, or one of Hugging Face layout.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data to evaluate on; several: each gets figures of its own. Default: the run's validation split."),
    ] = None,
    checkpoint: CheckpointName = None,
    predictions: Annotated[Path | None, typer.Option(help="Predictions to score without a model: .jsonl, .csv, .tsv.")] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", help="Figures by part: COLUMN, COLUMN:10,20, COLUMN~REGEX; length, words, language are of the text."
        ),
    ] = None,
    protected: Annotated[
        list[str] | None, typer.Option(help="Column whose groups are to be treated alike: gaps with intervals and p.")
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="precision=0.9 or recall=0.95: the threshold of each label that reaches it.")
    ] = None,
    robust: Annotated[
        list[str] | None,
        typer.Option(help="Figures on changed texts: all, typos, lower, upper, full-width, half-width, synonyms."),
    ] = None,
    synonyms: Annotated[Path | None, typer.Option(help="For --robust synonyms: lines of words of one meaning.")] = None,
    mistakes: Annotated[int, typer.Option(min=0, help="Worst rows and confused pairs that go into the JSON file.")] = 20,
    save: Annotated[Path | None, typer.Option("--save-predictions", help="Writes the model's answers to this file.")] = None,
    sets: Sets = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the figures to this file.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Writes a page with curves and examples.")] = None,
) -> None:
    """Figures of a model, or of a file of predictions, with 95 % intervals."""
    from zenspeed.evaluate.score import Options, lines_of, score_file

    if (run is None) == (predictions is None):
        raise InputError("evaluate: give a run's folder, or --predictions FILE; one of them")
    options = Options(slices or [], protected or [], threshold or [], mistakes)
    if predictions is not None:
        for name, given in (("--robust", robust), ("--data", data), ("--save-predictions", save), ("--set", sets)):
            if given:
                raise InputError(f"{name}: needs a model; --predictions has none")
        found = score_file(predictions, options)
        print("\n".join(lines_of(found)))
        write_json(json_path, found)
        _write_page(html_path, found)
        return
    assert run is not None
    from zenspeed.parallel.mesh import world
    from zenspeed.tasks.evaluate import Asked, evaluate_folder

    asked = Asked(data or [], checkpoint, sets or [], options, robust or [], synonyms, save)
    with world() as here:
        found = evaluate_folder(run, asked, here.rank, here.size)
        if here.rank == 0:
            print("\n".join(lines_of(found)))
            write_json(json_path, found)
            _write_page(html_path, found)


def _write_page(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        from zenspeed.report.page import evaluation_page, write_page

        write_page(path, evaluation_page(found, shlex.join(["zenspeed", *sys.argv[1:]])))


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Files of predictions, or runs that hold predictions.jsonl.")],
    metric: Annotated[str | None, typer.Option(help="Such as f1_macro, mcc, bleu, spearman; default: by kind.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the comparisons to this file.")] = None,
) -> None:
    """Whether one system is better than another on the same rows: effect, interval, test, and what may be concluded."""
    from zenspeed.evaluate.compare import as_json, compare_files

    found = compare_files(files, metric)
    print("\n".join(map(str, found)))
    matched, tests = (", ".join(sorted({getattr(c, name) for c in found})) for name in ("matched_by", "test"))
    print(f"rows matched by {matched}; {tests}; p corrected for {len(found)} comparisons (Holm); bootstrap, seed 0")
    write_json(json_path, as_json(found))

"""data report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import app
from zenspeed.errors import InputError

data_app = typer.Typer(help="Look at data before anything is trained on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.callback()
def data() -> None:
    """Look at data before anything is trained on it."""


@data_app.command("report")
def data_report(
    train: Annotated[str, typer.Argument(help="Rows: CSV, TSV, JSON lines, Parquet, a folder, a glob.", show_default=False)],
    test: Annotated[str | None, typer.Option(help="Rows of the test set; says what of it is in the training set.")] = None,
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder; default: one trained on the rows.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Writes the page to this file.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the figures to this file.")] = None,
) -> None:
    """Lengths, duplicates, leakage, labels, language, odd rows, tokens, and the sequence length to take."""
    from zenspeed.config import write_atomically
    from zenspeed.data.report import report
    from zenspeed.data.report_page import as_json, page, terminal

    found = report(train, test, text, label, tokenizer)
    terminal(found)
    outputs = [(html_path, page), (json_path, lambda r: json.dumps(as_json(r), indent=1, ensure_ascii=False))]
    for path, render in outputs:
        if path is not None:
            try:
                write_atomically(path, render(found))
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from None

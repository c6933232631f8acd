"""Scores a file of predictions: figures over all rows and by slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.evaluate.classify import Undefined, confusion, label_figures, roc_area
from zenspeed.evaluate.interval import RESAMPLES, SEED, Figure
from zenspeed.evaluate.predictions import Predictions, read_predictions
from zenspeed.evaluate.written import written_figures

SCHEMA = "zenspeed.evaluation"
VERSION = 1
_FEW = 100
Figures = dict[str, Figure | Undefined]


def score_file(path: Path, slices: Sequence[str] = ()) -> dict[str, Any]:
    """The evaluation as a mapping for JSON; docs/evaluation.md says what each key holds.

    Args:
        slices: columns; each of their values gets its own figures.
    """
    predictions = read_predictions(path)
    rows = predictions.rows
    columns = {name: [str(value) for value in predictions.column(name)] for name in slices}
    tables = [_table("all", "", predictions)]
    for name, values in columns.items():
        for value in sorted(set(values)):
            part = [row for row, other in zip(rows, values, strict=True) if other == value]
            tables.append(_table(name, value, predictions._replace(rows=part)))
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "source": str(predictions.path),
        "n": len(rows),
        "resamples": RESAMPLES,
        "seed": SEED,
        "figures": [figure for table in tables for figure in table],
        "warnings": _warnings(len(rows), columns),
    }
    if predictions.labelled:
        matrix = confusion(predictions.column("label"), predictions.column("prediction"))
        found["confusion"] = {"labels": matrix.labels, "counts": matrix.counts.tolist()}
    return found


def figures_of(predictions: Predictions) -> Figures:
    """Figures by name, of labels or of texts, as the file holds them."""
    if not predictions.labelled:
        return written_figures(predictions.column("reference"), predictions.column("prediction"))
    labels = predictions.column("label")
    matrix = confusion(labels, predictions.column("prediction"))
    figures = label_figures(matrix)
    if all("scores" in row for row in predictions.rows):
        for label in matrix.labels:
            if all(str(label) in row["scores"] for row in predictions.rows):
                scores = np.array([row["scores"][str(label)] for row in predictions.rows], np.float64)
                positive = np.array([x == label for x in labels])
                figures[f"roc_auc[{label}]"] = roc_area(
                    positive, scores, f"area under the ROC curve of {label!r} against the rest"
                )
    return figures


def _table(column: str, value: str, predictions: Predictions) -> list[dict[str, Any]]:
    where = {"slice": column, "value_of_slice": value}
    empty = {"value": None, "low": None, "high": None}
    return [{"name": k, **where, **empty, **f._asdict()} for k, f in figures_of(predictions).items()]


def _warnings(n: int, columns: dict[str, list[str]]) -> list[str]:
    found = [f"{n} rows only: the intervals are wide and approximate below {_FEW}"] if n < _FEW else []
    for name, values in columns.items():
        small = sum(values.count(value) < _FEW for value in set(values))
        if small:
            found.append(f"slice {name}: {small} of {len(set(values))} values have fewer than {_FEW} rows")
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """The figures for a terminal, one a line."""
    width = max(len(f["name"]) for f in found["figures"])
    lines, at = [], ("all", "")
    for f in found["figures"]:
        if (here := (f["slice"], f["value_of_slice"])) != at:
            lines += ["", f"{here[0]} = {here[1]}"]
            at = here
        keys = ("n", "definition", "reason") if f["value"] is None else ("value", "low", "high", "n", "definition", "reason")
        figure = (Undefined if f["value"] is None else Figure)(**{k: f[k] for k in keys})
        lines.append(f"{f['name']:<{width}}  {figure}  n {f['n']:,}")
    return [*lines, *(f"warning: {warning}" for warning in found["warnings"])]

"""Files of predictions: JSON lines with `label` and `prediction`, `reference` and `prediction`, or `label` and `scores`."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.errors import InputError


class Predictions(NamedTuple):
    """Rows in the order of the file; `labelled`: columns `label` (and `scores`), else `reference` texts."""

    path: Path
    rows: list[dict[str, Any]]
    labelled: bool

    def column(self, name: str) -> list[Any]:
        """Values of a column; InputError names the nearest when it is missing."""
        for i, row in enumerate(self.rows):
            if name not in row:
                near = difflib.get_close_matches(name, list(row), 1)
                hint = f"; nearest: {near[0]}" if near else f"; it has {', '.join(row)}"
                raise InputError(f"{self.path}: row {i + 1} has no column {name!r}{hint}")
        return [row[name] for row in self.rows]


def read_predictions(path: Path) -> Predictions:
    """Reads a file of predictions, or the `predictions.jsonl` of a run's folder.

    Errors: InputError with the line's number for what is no JSON object, lacks a column, or holds a score that is not finite.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give a file of JSON lines") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; give a file of JSON lines in UTF-8") from None
    if not rows:
        raise InputError(f"{path}: holds no rows; give JSON lines with label and prediction")
    labelled = "label" in rows[0] or "reference" not in rows[0]
    predictions = Predictions(path, rows, labelled)
    targets = predictions.column("label" if labelled else "reference")
    if not labelled or "scores" not in rows[0]:
        answers = predictions.column("prediction")
    else:
        answers = [_likeliest(path, i, row) for i, row in enumerate(rows)]
    for i, (row, target, answer) in enumerate(zip(rows, targets, answers, strict=True)):
        row["prediction"] = answer
        if type(target) is not type(targets[0]) or type(answer) is not type(targets[0]):
            kinds = f"{type(targets[0]).__name__}, {type(target).__name__} and {type(answer).__name__}"
            raise InputError(f"{path}: row {i + 1}: labels and predictions are of mixed types ({kinds}); write all alike")
        if not isinstance(target, str | int | bool) or (not labelled and not isinstance(target, str)):
            raise InputError(f"{path}: row {i + 1}: {target!r} is no label or text; write a string or a whole number")
    return predictions


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is no JSON: {error.msg}; write one object a line") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is no object; write {{'label': …, 'prediction': …}}")
            yield row


def _likeliest(path: Path, i: int, row: dict[str, Any]) -> Any:
    """The row's prediction: its own where it has one, else the label of the highest score. Checks the scores."""
    scores = row.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise InputError(f"{path}: row {i + 1}: scores is {scores!r}; write a mapping of label to score")
    for label, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(f"{path}: row {i + 1}: score of {label!r} is {score!r}; write a finite number")
    if str(row["label"]) not in scores:
        raise InputError(f"{path}: row {i + 1}: label {row['label']!r} has no score; score every label")
    if "prediction" in row:
        return row["prediction"]
    best = max(scores, key=scores.__getitem__)
    try:
        # Keys of JSON objects are strings; labels may be numbers.
        return type(row["label"])(best) if isinstance(row["label"], int) and not isinstance(row["label"], bool) else best
    except ValueError:
        raise InputError(f"{path}: row {i + 1}: score of {best!r} belongs to no number; write labels as strings") from None

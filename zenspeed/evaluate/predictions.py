"""Files of predictions: JSON lines with `label` or `reference` and `prediction`, with `label` and `scores`, or with `rank`.

What they hold decides how they are scored: labels; numbers, where the predictions are fractions; written texts; rankings, by
the rank from 1 of what belongs to each query (null: not found), or a list of ranks where several belong to it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from zenspeed.errors import InputError, missing

Kind = Literal["labels", "numbers", "texts", "ranks", "other"]
"""`other`: what a task scores by itself."""


class Predictions(NamedTuple):
    """Rows in the order of the file; checked, each with its `prediction`."""

    path: Path
    rows: list[dict[str, Any]]
    kind: Kind

    @property
    def truth(self) -> str:
        """The column of what is right."""
        return {"texts": "reference", "ranks": "candidates"}.get(self.kind, "label")

    def column(self, name: str) -> list[Any]:
        """Values of a column; InputError names the nearest when it is missing."""
        try:
            return [row[name] for row in self.rows]
        except KeyError:
            i, row = next((i, row) for i, row in enumerate(self.rows, 1) if name not in row)
        near = difflib.get_close_matches(name, list(row), 1)
        hint = f"; nearest: {near[0]}" if near else f"; it has {', '.join(row)}"
        raise InputError(f"{self.path}: row {i} has no column {name!r}{hint}")


def read_predictions(path: Path) -> Predictions:
    """Reads a file of predictions, or the `predictions.jsonl` of a run's folder.

    Raises:
        InputError: with the line's number, what is no JSON object, lacks a column, or holds a score that is not finite.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    return checked(read_rows(path), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, one or more."""
    try:
        rows = list(_rows(path))
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give a file of JSON lines") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; give a file of JSON lines in UTF-8") from None
    if not rows:
        raise InputError(f"{path}: holds no rows; give JSON lines with label and prediction")
    return rows


def as_predictions(rows: list[dict[str, Any]], path: Path = Path("predictions.jsonl")) -> Predictions:
    """Labels, numbers or texts, if that is what the rows hold; else `other`, which their task scores by itself."""
    if ("prediction" in rows[0] or "scores" in rows[0]) and ("label" in rows[0] or "reference" in rows[0]):
        return checked(rows, path)
    return Predictions(path, rows, "other")


def checked(rows: list[dict[str, Any]], path: Path = Path("predictions")) -> Predictions:
    """Rows as predictions, each given its `prediction` where it has `scores` only.

    Raises:
        InputError: a column is missing, types are mixed, or a score is not finite.
    """
    if "label" not in rows[0] and "reference" in rows[0]:
        predictions = Predictions(path, rows, "texts")
        _check_texts(predictions)
        return predictions
    if "label" not in rows[0] and "rank" in rows[0]:
        predictions = Predictions(path, rows, "ranks")
        ranks_of(predictions)
        return predictions
    _refuse_unscored(rows[0], path)
    predictions = Predictions(path, rows, "labels")
    targets = predictions.column("label")
    if "scores" in rows[0] and not _scores_are_good(rows):
        for i, row in enumerate(rows):
            row["prediction"] = _likeliest(path, i, row)
    answers = predictions.column("prediction")
    if any(isinstance(value, float) for value in answers):
        return _numbers(predictions)
    kind = type(targets[0])
    if {*map(type, targets), *map(type, answers)} != {kind}:
        pairs = enumerate(zip(targets, answers, strict=True), 1)
        i, target, answer = next((i, t, a) for i, (t, a) in pairs if type(t) is not kind or type(a) is not kind)
        kinds = f"{kind.__name__}, {type(target).__name__} and {type(answer).__name__}"
        raise InputError(f"{path}: row {i}: labels and predictions are of mixed types ({kinds}); write all alike")
    if not issubclass(kind, str | int):
        raise InputError(f"{path}: row 1: {targets[0]!r} is no label or text; write a string or a whole number")
    return predictions


def ranks_of(p: Predictions) -> list[np.ndarray]:
    """Ranks from 1 of what belongs to each query, inf for what was not found."""
    found = []
    for i, value in enumerate(p.column("rank"), 1):
        ranks = value if isinstance(value, list) else [value]
        if not ranks or any(
            r is not None and (isinstance(r, bool) or not isinstance(r, int | float) or not r >= 1) for r in ranks
        ):
            raise InputError(f"{p.path}: row {i}: rank is {value!r}; write a number from 1 on, null for not found, or a list")
        found.append(np.array([math.inf if r is None else float(r) for r in ranks]))
    return found


def _refuse_unscored(row: dict[str, Any], path: Path) -> None:
    if "text_pair" in row and "prediction" in row and "label" not in row:
        raise InputError(
            f"{path}: row 1 is a pair with a cosine and nothing to compare it with; give every row `label`, how alike its "
            "texts are, or `rank`, the place of the second text among all"
        )


def _check_texts(p: Predictions) -> None:
    for i, (target, answer) in enumerate(zip(p.column("reference"), p.column("prediction"), strict=True)):
        if isinstance(target, list) and target and all(isinstance(text, str) for text in target):
            target = target[0]
        for value in (target, answer):
            if not isinstance(value, str):
                raise InputError(
                    f"{p.path}: row {i + 1}: {value!r} is no label or text; write a string, or a list of references"
                )


def _numbers(p: Predictions) -> Predictions:
    for i, row in enumerate(p.rows):
        for name in ("label", "prediction"):
            try:
                row[name] = float(row[name])
            except (TypeError, ValueError):
                row[name] = math.nan
            if not math.isfinite(row[name]):
                raise InputError(f"{p.path}: row {i + 1}: {name} is to be a finite number, as other predictions are")
    return p._replace(kind="numbers")


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


def _scores_are_good(rows: list[dict[str, Any]]) -> bool:
    """A quick look whether nothing is amiss and each row has its prediction; `_likeliest` says what is."""
    try:
        first = rows[0]["scores"].keys()
        values = [value for row in rows for value in row["scores"].values()]
        same = all(row["scores"].keys() == first and "prediction" in row and str(row["label"]) in first for row in rows)
        return same and {*map(type, values)} <= {int, float} and math.isfinite(sum(values))
    except (KeyError, AttributeError, TypeError):
        return False


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

"""Files of predictions: rows with `label` or `reference` and `prediction`, with `label` and `scores`, or with `rank`.

What they hold decides how they are scored: labels; numbers, where the predictions are fractions; written texts; rankings, by
the rank from 1 of what belongs to each query (null: not found), or a list of ranks where several belong to it.

Rows are gone through once and checked; what figures are counted of stays, as arrays (a label 4 bytes, a score 8). Texts stay
where they are, and are read again where they are needed.
"""

from __future__ import annotations

import difflib
import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenspeed.errors import InputError
from zenspeed.evaluate.interval import Array
from zenspeed.evaluate.ranking import Ranks
from zenspeed.evaluate.rowfile import Row, RowFile, part_of
from zenspeed.evaluate.written import has_chinese

Kind = Literal["labels", "numbers", "texts", "ranks", "other"]
"""`other`: what a task scores by itself."""
_TRUTH = {"texts": "reference", "ranks": "candidates"}


class Labels(NamedTuple):
    """names: all that occur, sorted. truth, said: (n,) their numbers."""

    names: list[Any]
    truth: NDArray[np.int32]
    said: NDArray[np.int32]
    scored: list[str] | None
    """Labels that every row has a score for, as JSON has them; None: no scores, or of other labels in other rows."""
    scores: Array
    """(n, scored)"""


class Numbers(NamedTuple):
    """(n,) each."""

    truth: Array
    said: Array


class Texts(NamedTuple):
    """What of a row decides how all are counted, (n,) each: has its reference Chinese, how many has it, is none empty."""

    chinese: NDArray[np.bool_]
    references: NDArray[np.int32]
    filled: NDArray[np.bool_]


Values = Labels | Numbers | Texts | Ranks | None


class Predictions(NamedTuple):
    """Rows in the order of the file, checked."""

    path: Path
    rows: Sequence[Row]
    kind: Kind
    values: Values

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def truth(self) -> str:
        """The column of what is right."""
        return _TRUTH.get(self.kind, "label")

    @property
    def labels(self) -> Labels:
        assert isinstance(self.values, Labels)
        return self.values

    @property
    def numbers(self) -> Numbers:
        assert isinstance(self.values, Numbers)
        return self.values

    @property
    def texts(self) -> Texts:
        assert isinstance(self.values, Texts)
        return self.values

    @property
    def ranks(self) -> Ranks:
        assert isinstance(self.values, Ranks)
        return self.values

    def take(self, places: np.ndarray) -> Predictions:
        """The rows at these places, in this order."""
        v: Any = self.values
        if isinstance(v, Labels):
            v = v._replace(truth=v.truth[places], said=v.said[places], scores=v.scores[places])
        elif isinstance(v, Ranks):
            v = v.take(places)
        elif v is not None:
            v = type(v)(*(column[places] for column in v))
        return self._replace(rows=part_of(self.rows, places), values=v)

    def answer(self, i: int) -> Any:
        """The prediction of row `i`."""
        if isinstance(self.values, Labels):
            return self.values.names[self.values.said[i]]
        return float(self.values.said[i]) if isinstance(self.values, Numbers) else self.rows[i]["prediction"]

    def right(self, i: int) -> Any:
        """The truth of row `i`."""
        if isinstance(self.values, Labels):
            return self.values.names[self.values.truth[i]]
        return float(self.values.truth[i]) if isinstance(self.values, Numbers) else self.rows[i][self.truth]

    def column(self, name: str) -> Iterator[Any]:
        """Values of a column; InputError names the nearest when it is missing."""
        for i, row in enumerate(self.rows, 1):
            if name not in row:
                raise _no_column(self.path, i, row, name)
            yield row[name]


def read_predictions(path: Path) -> Predictions:
    """Reads a file of predictions, or the `predictions.jsonl` of a run's folder.

    Raises:
        InputError: with the line's number, what is no row, lacks a column, or holds a score that is not finite.
    """
    path = path / "predictions.jsonl" if path.is_dir() else path
    return checked(RowFile(path), path)


def as_predictions(rows: Sequence[Row], path: Path = Path("predictions.jsonl")) -> Predictions:
    """Labels, numbers or texts, if that is what the rows hold; else `other`, which their task scores by itself."""
    first = _first(rows, path)
    if ("prediction" in first or "scores" in first) and ("label" in first or "reference" in first):
        return checked(rows, path)
    return Predictions(path, rows, "other", None)


def checked(rows: Sequence[Row], path: Path = Path("predictions")) -> Predictions:
    """Rows as predictions.

    Raises:
        InputError: there is no row, a column is missing, types are mixed, or a score is not finite.
    """
    going = iter(rows)
    first = next(going, None)
    if first is None:
        raise _no_rows(path)
    every = itertools.chain([first], going)
    if "label" not in first and "reference" in first:
        return Predictions(path, rows, "texts", _texts(every, path))
    if "label" not in first and "rank" in first:
        return Predictions(path, rows, "ranks", _ranks(every, path))
    _refuse_unscored(first, path)
    values = _labels(every, path, first)
    return Predictions(path, rows, "labels" if isinstance(values, Labels) else "numbers", values)


def _first(rows: Sequence[Row], path: Path) -> Row:
    first = next(iter(rows), None)
    if first is None:
        raise _no_rows(path)
    return first


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path}: holds no rows; give rows with label and prediction")


def _no_column(path: Path, i: int, row: Row, name: str) -> InputError:
    near = difflib.get_close_matches(name, list(row), 1)
    hint = f"; nearest: {near[0]}" if near else f"; it has {', '.join(row)}"
    return InputError(f"{path}: row {i} has no column {name!r}{hint}")


def _refuse_unscored(row: Row, path: Path) -> None:
    if "text_pair" in row and "prediction" in row and "label" not in row:
        raise InputError(
            f"{path}: row 1 is a pair with a cosine and nothing to compare it with; give every row `label`, how alike its "
            "texts are, or `rank`, the place of the second text among all"
        )


# Labels and numbers ---------------------------------------------------------------------------------------------------


def _labels(rows: Iterable[Row], path: Path, first: Row) -> Labels | Numbers:
    """Labels of one type; at the first prediction that is a fraction, numbers instead."""
    number: dict[Any, int] = {}
    truth, said = array("i"), array("i")
    scores, kind, mixed = _ScoreReader(path, first), type(first.get("label")), None
    going = enumerate(rows, 1)
    for i, row in going:
        if "label" not in row:
            raise _no_column(path, i, row, "label")
        target = row["label"]
        if not isinstance(target, str | int | float):
            raise InputError(f"{path}: row {i}: {target!r} is no label or text; write a string or a whole number")
        answer = scores.answer(i, row, target)
        if type(target) is not kind or type(answer) is not kind:
            if isinstance(answer, float):
                values = np.array([_number(name) for name in number] or [0.0])
                before = [array("d", values[np.array(column, np.int32)].tobytes()) for column in (truth, said)]
                return _numbers(itertools.chain([(i, row)], going), path, *before)
            mixed = mixed or _mixed(path, i, kind, target, answer)
            if not isinstance(answer, str | int):
                raise mixed
        elif kind is float:
            return _numbers(itertools.chain([(i, row)], going), path, array("d"), array("d"))
        truth.append(number.setdefault(target, len(number)))
        said.append(number.setdefault(answer, len(number)))
    if mixed is not None:
        raise mixed
    names = sorted(number)
    place = np.empty(len(names), np.int32)
    place[[number[name] for name in names]] = np.arange(len(names))
    return Labels(names, place[np.frombuffer(truth, np.int32)], place[np.frombuffer(said, np.int32)], *scores.found(len(truth)))


def _mixed(path: Path, i: int, kind: type, target: Any, answer: Any) -> InputError:
    kinds = f"{kind.__name__}, {type(target).__name__} and {type(answer).__name__}"
    return InputError(f"{path}: row {i}: labels and predictions are of mixed types ({kinds}); write all alike")


def _numbers(rows: Iterable[tuple[int, Row]], path: Path, truth: array[float], said: array[float]) -> Numbers:
    for i, row in rows:
        for name, values in (("label", truth), ("prediction", said)):
            if name not in row:
                raise _no_column(path, i, row, name)
            values.append(_number(row[name]))
    found = Numbers(np.frombuffer(truth), np.frombuffer(said))
    for name, column in (("label", found.truth), ("prediction", found.said)):
        if not (finite := np.isfinite(column)).all():
            i = int(finite.argmin()) + 1
            raise InputError(f"{path}: row {i}: {name} is to be a finite number, as other predictions are")
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class _ScoreReader:
    """Takes the prediction of each row, and its scores, all of the same labels, as the first row has them."""

    def __init__(self, path: Path, first: Row) -> None:
        self._path = path
        self._scored = "scores" in first
        scores = first.get("scores")
        self._labels: list[str] | None = list(scores) if isinstance(scores, dict) else None
        self._known = set(self._labels or ())
        self._values = array("d")

    def answer(self, i: int, row: Row, target: Any) -> Any:
        """The row's prediction: its own where it has one, else the label of the highest score."""
        if self._scored:
            scores = row.get("scores")
            if self._labels is not None and isinstance(scores, dict) and scores.keys() == self._known:
                values = [scores[label] for label in self._labels]
                if {*map(type, values)} <= {int, float} and math.isfinite(sum(values)) and str(target) in self._known:
                    self._values.extend(values)
                    return row["prediction"] if "prediction" in row else _likeliest(self._path, i, row)
            else:
                self._labels, self._values = None, array("d")
            return _likeliest(self._path, i, row)
        if "prediction" not in row:
            raise _no_column(self._path, i, row, "prediction")
        return row["prediction"]

    def found(self, n: int) -> tuple[list[str] | None, Array]:
        if self._labels is None:
            return None, np.zeros((n, 0))
        return self._labels, np.frombuffer(self._values).reshape(-1, len(self._labels))


def _likeliest(path: Path, i: int, row: Row) -> Any:
    """The row's prediction: its own where it has one, else the label of the highest score. Checks the scores."""
    scores = row.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise InputError(f"{path}: row {i}: scores is {scores!r}; write a mapping of label to score")
    for label, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(f"{path}: row {i}: score of {label!r} is {score!r}; write a finite number")
    if str(row["label"]) not in scores:
        raise InputError(f"{path}: row {i}: label {row['label']!r} has no score; score every label")
    if "prediction" in row:
        return row["prediction"]
    best = max(scores, key=scores.__getitem__)
    try:
        # Keys of JSON objects are strings; labels may be numbers.
        return type(row["label"])(best) if isinstance(row["label"], int) and not isinstance(row["label"], bool) else best
    except ValueError:
        raise InputError(f"{path}: row {i}: score of {best!r} belongs to no number; write labels as strings") from None


# Texts and rankings ---------------------------------------------------------------------------------------------------


def _texts(rows: Iterable[Row], path: Path) -> Texts:
    chinese, references, filled = array("b"), array("i"), array("b")
    for i, row in enumerate(rows, 1):
        for name in ("reference", "prediction"):
            if name not in row:
                raise _no_column(path, i, row, name)
        target, answer = row["reference"], row["prediction"]
        texts = target if isinstance(target, list) and target else [target]
        for value in (*texts, answer):
            if not isinstance(value, str):
                wrong = target if value is not answer else answer
                raise InputError(f"{path}: row {i}: {wrong!r} is no label or text; write a string, or a list of references")
        chinese.append(any(map(has_chinese, texts)))
        references.append(len(texts))
        filled.append(any(texts))
    return Texts(np.array(chinese, np.bool_), np.frombuffer(references, np.int32), np.array(filled, np.bool_))


def _ranks(rows: Iterable[Row], path: Path) -> Ranks:
    values, counts = array("d"), array("i")
    for i, row in enumerate(rows, 1):
        if "rank" not in row:
            raise _no_column(path, i, row, "rank")
        value = row["rank"]
        ranks = value if isinstance(value, list) else [value]
        if not ranks or any(
            r is not None and (isinstance(r, bool) or not isinstance(r, int | float) or not r >= 1) for r in ranks
        ):
            raise InputError(f"{path}: row {i}: rank is {value!r}; write a number from 1 on, null for not found, or a list")
        values.extend(math.inf if r is None else r for r in ranks)
        counts.append(len(ranks))
    return Ranks(np.frombuffer(values), np.frombuffer(counts, np.int32))

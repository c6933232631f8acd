"""Figures of classification from the confusion matrix; equal to scikit-learn's, with intervals.

Drawing n rows with replacement draws the cells of the confusion matrix from a multinomial, and every figure here follows from
three numbers a label (found, true, predicted), so a bootstrap costs the same for a thousand rows and for a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenspeed.evaluate.interval import (
    MOST_UNITS,
    RESAMPLES,
    SEED,
    Array,
    Figure,
    Figures,
    Measure,
    Undefined,
    counted_in_groups,
    interval_of,
    mean_measure,
    wilson,
)

_CHUNK_CELLS = 4_000_000
_MOST_CELLS = 10_000_000  # rows (or their groups) × labels, above which only accuracy is compared
_MEASURED = ("balanced_accuracy", "f1_macro", "mcc")


class Confusion(NamedTuple):
    """labels: K names, sorted. counts: (K, K) rows are the true labels, columns the predicted ones."""

    labels: list[Any]
    counts: NDArray[np.int64]


def confusion(labels: Sequence[Any], predictions: Sequence[Any]) -> Confusion:
    """Counts every pair of true and predicted label."""
    names = sorted(set(labels) | set(predictions))
    return confusion_of(names, *(_numbered(column, names) for column in (labels, predictions)))


def confusion_of(names: Sequence[Any], truth: NDArray[np.integer[Any]], said: NDArray[np.integer[Any]]) -> Confusion:
    """The same of numbers of names, (n,) each; names that neither has are left out."""
    occur = np.flatnonzero(np.bincount(truth, minlength=len(names)) + np.bincount(said, minlength=len(names)))
    place = np.zeros(len(names), np.int64)
    place[occur] = np.arange(k := len(occur))
    counts = np.bincount(place[truth] * k + place[said], minlength=k * k).reshape(k, k)
    return Confusion([names[i] for i in occur.tolist()], counts)


def _numbered(column: Sequence[Any], names: Sequence[Any]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(names)}
    return np.fromiter((number[x] for x in column), np.int64, len(column))


class Margins(NamedTuple):
    """What the figures are functions of, (R, K) each: rows of a label that are found, have it, are given it."""

    hits: Array
    true: Array
    predicted: Array


def label_figures(matrix: Confusion) -> Figures:
    """Accuracy, balanced accuracy, F1 (macro, weighted), MCC; precision, recall and F1 of each label."""
    counts, n = matrix.counts, int(matrix.counts.sum())
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    whole = Margins(*(x[None].astype(np.float64) for x in (hits, true, predicted)))
    drawn = _resampled(counts)
    figures: Figures = {"accuracy": wilson(int(hits.sum()), n, "share of rows whose prediction is the label; equals micro F1")}
    several = np.count_nonzero(true) > 1
    for name, (function, definition, needs_two) in _OVERALL.items():
        if needs_two and not several:
            figures[name] = Undefined(n, definition, "only one label occurs")
        else:
            figures[name] = _figure(whole, drawn, function, n, definition)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1, f1_drawn = _f1(whole)[0], _f1(drawn)
    for i, label in enumerate(matrix.labels):
        figures[f"precision[{label}]"] = _share(
            hits[i], predicted[i], f"share of rows predicted {label!r} that are", f"{label!r} is never predicted"
        )
        figures[f"recall[{label}]"] = _share(
            hits[i], true[i], f"share of rows labelled {label!r} that are found", f"no row is labelled {label!r}"
        )
        definition = f"harmonic mean of precision and recall of {label!r}"
        figures[f"f1[{label}]"] = _with_interval(float(f1[i]), f1_drawn[:, i], n, definition)
    return figures


def label_measures(
    labels: Sequence[Any], predictions: Sequence[Any], names: Sequence[Any] | None = None, wanted: Sequence[str] | None = None
) -> dict[str, Measure]:
    """Accuracy, and where the labels are few, balanced accuracy, macro F1 and MCC, as functions of sums over rows.

    Args:
        names: all labels, so that two systems are counted alike; None: those that occur here. wanted: None: all.
    """
    names = sorted(set(labels) | set(predictions)) if names is None else names
    return label_measures_of(_numbered(labels, names), _numbered(predictions, names), len(names), wanted)


def label_measures_of(
    truth: NDArray[np.integer[Any]], said: NDArray[np.integer[Any]], k: int, wanted: Sequence[str] | None = None
) -> dict[str, Measure]:
    """The same of numbers of K labels, (n,) each."""
    n, hit = len(truth), truth == said
    found = {}
    if wanted is None or "accuracy" in wanted:
        found["accuracy"] = mean_measure(hit.astype(np.float64), "share of rows whose prediction is the label")
    others = [name for name in _MEASURED if wanted is None or name in wanted]
    if not others or min(n, MOST_UNITS) * k > _MOST_CELLS:
        return found
    hits = counted_in_groups(n, np.where(hit, truth, k), k + 1)[:, :k]
    statistics = np.concatenate([hits, counted_in_groups(n, truth, k), counted_in_groups(n, said, k)], 1)
    for name in others:
        function, definition, _ = _OVERALL[name]
        found[name] = Measure(statistics, _of_margins(function), definition, rows=n)
    return found


def _of_margins(function: Callable[[Margins], Array]) -> Callable[[Array], Array]:
    return lambda sums: function(Margins(*np.split(sums, 3, 1)))


def _share(part: int, whole: int, definition: str, reason: str) -> Figure | Undefined:
    return wilson(int(part), int(whole), definition) if whole else Undefined(0, definition, reason)


def _f1(m: Margins) -> Array:
    """(R, K); NaN for a label that is neither true nor predicted."""
    return 2 * m.hits / (m.true + m.predicted)


def _macro_f1(m: Margins) -> Array:
    return _mean_of_present(_f1(m))


def _weighted_f1(m: Margins) -> Array:
    return (np.nan_to_num(_f1(m)) * m.true).sum(1) / m.true.sum(1)


def _macro_precision(m: Margins) -> Array:
    return _mean_of_present(m.hits / m.predicted)


def _balanced(m: Margins) -> Array:
    return _mean_of_present(m.hits / m.true)


def _mean_of_present(values: Array) -> Array:
    present = ~np.isnan(values)
    return np.where(present, values, 0).sum(1) / present.sum(1)


def _mcc(m: Margins) -> Array:
    n = m.true.sum(1)
    covariance = n * m.hits.sum(1) - (m.true * m.predicted).sum(1)
    return covariance / (np.sqrt(n**2 - (m.true**2).sum(1)) * np.sqrt(n**2 - (m.predicted**2).sum(1)))


# Name -> function, definition, whether it takes two labels that occur.
_OVERALL: dict[str, tuple[Callable[[Margins], Array], str, bool]] = {
    "balanced_accuracy": (_balanced, "mean over labels of recall, of labels that occur; equals macro recall", True),
    "precision_macro": (_macro_precision, "mean over labels of precision, of labels that are predicted", False),
    "f1_macro": (_macro_f1, "mean over labels of F1, of labels that occur or are predicted", False),
    "f1_weighted": (_weighted_f1, "mean over labels of F1, weighted by their rows", False),
    "mcc": (_mcc, "correlation of labels and predictions (Matthews; several labels: Gorodkin 2004)", True),
}


def _figure(
    whole: Margins, drawn: Margins, function: Callable[[Margins], Array], n: int, definition: str
) -> Figure | Undefined:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(function(whole)[0])
        if math.isnan(value):
            return Undefined(n, definition, "every prediction is the same label")
        return _with_interval(value, function(drawn), n, definition)


def _with_interval(value: float, drawn: Array, n: int, definition: str) -> Figure:
    if n < 2:
        return Figure(value, None, None, n, definition, "one row only, nothing to resample")
    return interval_of(value, drawn, n, definition)


def _resampled(counts: NDArray[np.int64]) -> Margins:
    """The margins of RESAMPLES draws of as many rows, (RESAMPLES, K) each."""
    n, k = int(counts.sum()), len(counts)
    rows, columns = np.nonzero(counts)
    chances = counts[rows, columns] / n
    rng, size, parts = np.random.default_rng(SEED), max(1, _CHUNK_CELLS // max(1, len(rows))), []
    for start in range(0, RESAMPLES, size):
        drawn = rng.multinomial(n, chances, min(size, RESAMPLES - start)).astype(np.float64)
        hit = rows == columns
        parts.append([_by_label(drawn[:, hit], rows[hit], k), _by_label(drawn, rows, k), _by_label(drawn, columns, k)])
    return Margins(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _by_label(drawn: Array, label: NDArray[np.int64], k: int) -> Array:
    """(R, K): the cells of each label added up."""
    out = np.zeros((len(drawn), k))
    if len(label):
        order = np.argsort(label, kind="stable")
        starts = np.flatnonzero(np.diff(label[order], prepend=-1))
        out[:, label[order][starts]] = np.add.reduceat(drawn[:, order], starts, 1)
    return out

"""Figures of classification from the confusion matrix; equal to scikit-learn's, with intervals.

Drawing n rows with replacement draws the cells of the confusion matrix from a multinomial, so that a bootstrap costs the same
for a thousand rows and for a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenspeed.evaluate.interval import RESAMPLES, SEED, Figure

Array = NDArray[np.float64]
_CHUNK_CELLS = 4_000_000


class Undefined(NamedTuple):
    """A figure that these data do not define, and why."""

    n: int
    definition: str
    reason: str

    def __str__(self) -> str:
        return f"not defined: {self.reason}"


class Confusion(NamedTuple):
    """labels: K names, sorted. counts: (K, K) rows are the true labels, columns the predicted ones."""

    labels: list[Any]
    counts: NDArray[np.int64]


def confusion(labels: Sequence[Any], predictions: Sequence[Any]) -> Confusion:
    """Counts every pair of true and predicted label."""
    names = sorted(set(labels) | set(predictions))
    index = {name: i for i, name in enumerate(names)}
    k = len(names)
    true = np.fromiter((index[x] for x in labels), np.int64, len(labels))
    predicted = np.fromiter((index[x] for x in predictions), np.int64, len(predictions))
    return Confusion(names, np.bincount(true * k + predicted, minlength=k * k).reshape(k, k))


def wilson(successes: int, n: int, definition: str) -> Figure | Undefined:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    if n == 0:
        return Undefined(0, definition, "no rows to count")
    z, p = 1.959963984540054, successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, middle - half), min(1.0, middle + half), n, definition)


def label_figures(matrix: Confusion) -> dict[str, Figure | Undefined]:
    """Accuracy, balanced accuracy, macro F1, MCC; precision, recall and F1 of each label."""
    counts, n = matrix.counts, int(matrix.counts.sum())
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    figures: dict[str, Figure | Undefined] = {
        "accuracy": wilson(int(hits.sum()), n, "share of rows whose prediction is the label; equals micro F1")
    }
    for name, (function, definition) in _OVERALL.items():
        figures[name] = _bootstrap(counts, function, definition)
    for i, label in enumerate(matrix.labels):
        figures[f"precision[{label}]"] = _share(
            hits[i], predicted[i], f"share of rows predicted {label!r} that are", f"{label!r} is never predicted"
        )
        figures[f"recall[{label}]"] = _share(
            hits[i], true[i], f"share of rows labelled {label!r} that are found", f"no row is labelled {label!r}"
        )
        figures[f"f1[{label}]"] = _bootstrap(counts, partial(_f1_of, i), f"harmonic mean of precision and recall of {label!r}")
    return figures


def _f1_of(index: int, counts: Array) -> Array:
    return _f1(counts)[:, index]


def _share(part: int, whole: int, definition: str, reason: str) -> Figure | Undefined:
    return wilson(int(part), int(whole), definition) if whole else Undefined(0, definition, reason)


def _f1(c: Array) -> Array:
    """(R, K, K) → (R, K); NaN for a label that is neither true nor predicted."""
    return 2 * np.diagonal(c, axis1=1, axis2=2) / (c.sum(1) + c.sum(2))


def _macro_f1(c: Array) -> Array:
    return _mean_of_present(_f1(c))


def _balanced(c: Array) -> Array:
    return _mean_of_present(np.diagonal(c, axis1=1, axis2=2) / c.sum(2))


def _mean_of_present(values: Array) -> Array:
    present = ~np.isnan(values)
    return np.where(present, values, 0).sum(1) / present.sum(1)


def _mcc(c: Array) -> Array:
    true, predicted, n = c.sum(2), c.sum(1), c.sum((1, 2))
    covariance = n * np.trace(c, axis1=1, axis2=2) - (true * predicted).sum(1)
    return covariance / (np.sqrt(n**2 - (true**2).sum(1)) * np.sqrt(n**2 - (predicted**2).sum(1)))


_OVERALL: dict[str, tuple[Callable[[Array], Array], str]] = {
    "balanced_accuracy": (_balanced, "mean over labels of recall, of labels that occur"),
    "f1_macro": (_macro_f1, "mean over labels of F1, of labels that occur or are predicted"),
    "mcc": (_mcc, "correlation of labels and predictions (Matthews; several labels: Gorodkin 2004)"),
}


def _bootstrap(counts: NDArray[np.int64], function: Callable[[Array], Array], definition: str) -> Figure | Undefined:
    n, k = int(counts.sum()), len(counts)
    if function is not _f1 and np.count_nonzero(counts.sum(1)) < 2 and function in (_balanced, _mcc):
        return Undefined(n, definition, "only one label occurs")
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(function(counts[None].astype(np.float64))[0])
        if math.isnan(value):
            return Undefined(n, definition, "every prediction is the same label")
        if n < 2:
            return Figure(value, None, None, n, definition, "one row only, nothing to resample")
        filled = np.flatnonzero(counts)
        chances = counts.ravel()[filled] / n
        rng, size, values = np.random.default_rng(SEED), max(1, _CHUNK_CELLS // (k * k)), []
        for start in range(0, RESAMPLES, size):
            drawn = np.zeros((min(size, RESAMPLES - start), k * k))
            drawn[:, filled] = rng.multinomial(n, chances, len(drawn))
            values.append(function(drawn.reshape(-1, k, k)))
    kept = np.concatenate(values)
    kept = kept[~np.isnan(kept)]  # resamples where the figure is not defined
    if len(kept) < 0.95 * RESAMPLES:
        return Figure(value, None, None, n, definition, "too few rows: not defined in more than 5 % of the resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Figure(value, float(low), float(high), n, definition)


def roc_area(positive: NDArray[np.bool_], scores: Array, definition: str) -> Figure | Undefined:
    """Area under the ROC curve with the interval of DeLong et al. 1988, from ranks (Sun & Xu 2014), O(n log n).

    Args:
        positive: (n,) whether the row has the label. scores: (n,) of that label.
    """
    n, m, k = len(scores), int(positive.sum()), int((~positive).sum())
    if not m or not k:
        return Undefined(n, definition, "only one class occurs")
    ranks = _ranks(scores)
    of_positive = (ranks[positive] - _ranks(scores[positive])) / k
    of_negative = 1 - (ranks[~positive] - _ranks(scores[~positive])) / m
    area = float(of_positive.mean())
    if min(m, k) < 2:
        return Figure(area, None, None, n, definition, "one row only of a class")
    half = 1.959963984540054 * math.sqrt(of_positive.var(ddof=1) / m + of_negative.var(ddof=1) / k)
    if half == 0:
        return Figure(area, None, None, n, definition, "no row differs from another of its class in rank, variance is 0")
    return Figure(area, max(0.0, area - half), min(1.0, area + half), n, definition)


def _ranks(values: Array) -> Array:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

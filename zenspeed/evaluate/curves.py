"""Scores of one label against the rest: ROC and precision-recall curves, their areas with intervals, choice of a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenspeed.errors import InputError
from zenspeed.evaluate.interval import RESAMPLES, SEED, Array, Figure, Undefined, wilson

_BINS = 256
_GROUPS = 200
MOST_POINTS = 200
"""Of a curve that is kept for drawing."""


class Counts(NamedTuple):
    """Rows at or above each distinct score, the highest first: thresholds, true and false positives, (d,) each."""

    thresholds: Array
    true_positives: Array
    false_positives: Array


def counts_above(positive: NDArray[np.bool_], scores: Array) -> Counts:
    """What every threshold would find. positive: (n,) whether the row has the label; scores: (n,) of that label."""
    values, inverse = np.unique(-scores, return_inverse=True)
    hits = np.bincount(inverse, weights=positive, minlength=len(values))
    rows = np.bincount(inverse, minlength=len(values))
    return Counts(-values, np.cumsum(hits), np.cumsum(rows - hits))


def roc_area(positive: NDArray[np.bool_], scores: Array, definition: str) -> Figure | Undefined:
    """Area under the ROC curve with the interval of DeLong et al. 1988, from ranks (Sun & Xu 2014), O(n log n).

    Args:
        positive: (n,) whether the row has the label. scores: (n,) of that label.
    """
    n, m, k = len(scores), int(positive.sum()), int((~positive).sum())
    if not m or not k:
        return Undefined(n, definition, "only one class occurs")
    ranks = mean_ranks(scores)
    of_positive = (ranks[positive] - mean_ranks(scores[positive])) / k
    of_negative = 1 - (ranks[~positive] - mean_ranks(scores[~positive])) / m
    area = float(of_positive.mean())
    if min(m, k) < 2:
        return Figure(area, None, None, n, definition, "one row only of a class")
    half = 1.959963984540054 * math.sqrt(of_positive.var(ddof=1) / m + of_negative.var(ddof=1) / k)
    if half == 0:
        return Figure(area, None, None, n, definition, "no row differs from another of its class in rank, variance is 0")
    return Figure(area, max(0.0, area - half), min(1.0, area + half), n, definition)


def mean_ranks(values: Array) -> Array:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def precision_area(positive: NDArray[np.bool_], scores: Array, definition: str) -> Figure | Undefined:
    """Average precision, the area under the precision-recall curve in steps; interval by bootstrap over rows.

    Rows are resampled as cells of (score, positive); more than 256 distinct scores are put into as many bins for that.
    """
    n, m = len(scores), int(positive.sum())
    if not m or m == n:
        return Undefined(n, definition, "only one class occurs")
    c = counts_above(positive, scores)
    value = float(average_precision(c.true_positives[None], c.false_positives[None])[0])
    if min(m, n - m) < 2:
        return Figure(value, None, None, n, definition, "one row only of a class")
    edges = np.linspace(0, len(c.thresholds), min(_BINS, len(c.thresholds)) + 1).astype(np.int64)[1:] - 1
    found, false = c.true_positives[edges], c.false_positives[edges]
    cells = np.concatenate([np.diff(found, prepend=0), np.diff(false, prepend=0)])
    drawn = np.random.default_rng(SEED).multinomial(n, cells / n, RESAMPLES).astype(np.float64)
    d = len(edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = average_precision(drawn[:, :d].cumsum(1), drawn[:, d:].cumsum(1))
    # Bins make the area a little different; that difference is taken out of the interval.
    shift = value - float(average_precision(found[None], false[None])[0])
    low, high = np.nanquantile(resampled, [0.025, 0.975]) + shift
    return Figure(value, max(0.0, float(low)), min(1.0, float(high)), n, definition)


def average_precision(true_positives: Array, false_positives: Array) -> Array:
    """(R, d) counts above falling thresholds -> (R,) areas under precision-recall curves, in steps."""
    above = true_positives + false_positives
    precision = np.divide(true_positives, above, out=np.zeros_like(above), where=above > 0)
    gained = np.diff(true_positives, prepend=0, axis=1)
    return (precision * gained).sum(1) / true_positives[:, -1]


def mean_area(
    of_labels: Sequence[tuple[NDArray[np.bool_], Array]], area: Callable[[Array, Array], Array], value: float, definition: str
) -> Figure:
    """`value`, a mean over labels of their areas, with the interval of a jackknife that leaves out groups of rows.

    All labels are scored on the same rows, so their areas vary together: each group is left out of all of them at once
    (Efron & Tibshirani 1993, chapter 11). Scores are put into bins for that, as in `precision_area`.

    Args:
        of_labels: (n,) whether each row has the label, and its score for it. area: as `roc_steps`.
    """
    n = len(of_labels[0][0])
    groups = min(n, _GROUPS)
    group = np.random.default_rng(SEED).permutation(n) % groups
    left_out = np.zeros(groups)
    for positive, scores in of_labels:
        places = np.unique(-scores, return_inverse=True)[1]
        bins = min(_BINS, int(places.max()) + 1)
        cell = (group * 2 + positive) * bins + places * bins // (int(places.max()) + 1)
        counts = np.bincount(cell, minlength=groups * 2 * bins).reshape(groups, 2, bins).astype(np.float64)
        above = (counts.sum(0) - counts).cumsum(2)
        with np.errstate(invalid="ignore", divide="ignore"):
            left_out += area(above[:, 1], above[:, 0]) / len(of_labels)
    if not np.isfinite(left_out).all():
        return Figure(value, None, None, n, definition, "a label has so few rows that without some of them it has none")
    half = 1.959963984540054 * math.sqrt((groups - 1) * float(left_out.var()))
    if half == 0:
        return Figure(value, None, None, n, definition, "no row left out changes it, variance is 0")
    return Figure(value, max(0.0, value - half), min(1.0, value + half), n, definition)


def roc_steps(true_positives: Array, false_positives: Array) -> Array:
    """(R, d) counts above falling thresholds -> (R,) areas under ROC curves."""
    y = true_positives / true_positives[:, -1:]
    before = np.concatenate([np.zeros((len(y), 1)), y[:, :-1]], 1)
    return (np.diff(false_positives, prepend=0, axis=1) * (y + before)).sum(1) / (2 * false_positives[:, -1])


def roc_points(positive: NDArray[np.bool_], scores: Array) -> list[list[float]]:
    """[false positive rate, true positive rate] from (0, 0) to (1, 1), at most MOST_POINTS of them."""
    c = counts_above(positive, scores)
    x, y = c.false_positives / c.false_positives[-1], c.true_positives / c.true_positives[-1]
    return _thin(np.concatenate([[0.0], x]), np.concatenate([[0.0], y]))


def precision_recall_points(positive: NDArray[np.bool_], scores: Array) -> list[list[float]]:
    """[recall, precision] by falling threshold, at most MOST_POINTS of them."""
    c = counts_above(positive, scores)
    return _thin(c.true_positives / c.true_positives[-1], c.true_positives / (c.true_positives + c.false_positives))


def _thin(x: Array, y: Array) -> list[list[float]]:
    """Points evenly along the curve's own length, its ends among them."""
    kept = np.arange(len(x))
    if len(x) > MOST_POINTS:
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        inner = np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)).clip(0, len(x) - 1)
        kept = np.unique(np.concatenate([[0], inner, [len(x) - 1]]))
    return [[round(float(a), 5), round(float(b), 5)] for a, b in zip(x[kept], y[kept], strict=True)]


class Wanted(NamedTuple):
    """A `precision` or `recall` that is to be reached."""

    of: str
    at_least: float


def wanted(text: str) -> Wanted:
    """`precision=0.9` or `recall=0.95`.

    Raises:
        InputError: it is neither.
    """
    of, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if of not in ("precision", "recall") or not 0 < value <= 1:
        raise InputError(f"--threshold: {text!r} is not understood; give precision=0.9 or recall=0.95, a share up to 1")
    return Wanted(of, value)


def choose_threshold(positive: NDArray[np.bool_], scores: Array, want: Wanted) -> dict[str, Any]:
    """The threshold that reaches what is wanted and loses least of the other: `threshold`, `precision`, `recall` as figures.

    Rows with a score at or above it are given the label. `threshold` is null where no threshold reaches it.
    """
    c = counts_above(positive, scores)
    total = c.true_positives[-1]
    if not total:
        return {"threshold": None, "reason": "no row has the label"}
    above = c.true_positives + c.false_positives
    precision, recall = c.true_positives / above, c.true_positives / total
    reached = (precision if want.of == "precision" else recall) >= want.at_least
    if not reached.any():
        best = float(precision.max())
        return {"threshold": None, "reason": f"no threshold has precision {want.at_least:g}; the highest is {best:.4f}"}
    # Recall only rises as the threshold falls: the lowest that keeps the precision, or the highest that has the recall.
    at = int(np.flatnonzero(reached)[-1 if want.of == "precision" else 0])
    found, chosen = int(c.true_positives[at]), "at the threshold, which was chosen on these rows"
    return {
        "threshold": float(c.thresholds[at]),
        "reason": None,
        "precision": wilson(found, int(above[at]), f"precision {chosen}")._asdict(),
        "recall": wilson(found, int(total), f"recall {chosen}")._asdict(),
    }

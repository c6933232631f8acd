"""Figures with their 95 % intervals: Wilson's for a share, else a bootstrap over the unit of sampling.

Nearly every figure is a function of sums over rows (of hits, of losses, of matched n-grams), so one bootstrap serves all of
them: it draws how often each row counts and hands the sums on (Efron & Tibshirani 1993, percentile method).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
MOST_UNITS = 10_000
"""More rows than these are dealt at random into so many groups, and groups are resampled: sums vary as much, sooner."""
_CHUNK = 50
Array = NDArray[np.float64]


class Figure(NamedTuple):
    """A measured value, its 95 % interval, and how many units it was sampled from. No interval: `reason` says why."""

    value: float
    low: float | None
    high: float | None
    n: int
    definition: str
    reason: str | None = None
    p: float | None = None
    """Where the figure comes with a test, its p value; the definition says of what."""

    def __str__(self) -> str:
        tested = "" if self.p is None else f"  p {self.p:.3g}"
        if self.low is None or self.high is None:
            return f"{self.value:.4f} (no interval: {self.reason}){tested}"
        return f"{self.value:.4f}  [{self.low:.4f}, {self.high:.4f}]{tested}"


class Undefined(NamedTuple):
    """A figure that these data do not define, and why."""

    n: int
    definition: str
    reason: str

    def __str__(self) -> str:
        return f"not defined: {self.reason}"


Figures = dict[str, Figure | Undefined]


class Measure(NamedTuple):
    """A figure as a function of sums over rows; intervals and comparisons of all measures are then computed alike."""

    statistics: Array
    """(n, k), one row a unit."""
    value: Callable[[Array], Array]
    """(R, k) sums -> (R,), NaN where they do not define the figure."""
    definition: str
    higher_is_better: bool = True
    rows: int | None = None
    """How many rows there are, where the statistics are of groups of them already."""

    @property
    def n(self) -> int:
        return len(self.statistics) if self.rows is None else self.rows


def wilson(successes: int, n: int, definition: str) -> Figure | Undefined:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    if n == 0:
        return Undefined(0, definition, "no rows to count")
    z, p = 1.959963984540054, successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, middle - half), min(1.0, middle + half), n, definition)


def groups_of(n: int) -> NDArray[np.int32]:
    """(n,) the group of each row: its own, or of more than MOST_UNITS rows one that it is dealt into at random."""
    if n <= MOST_UNITS:
        return np.arange(n, dtype=np.int32)
    return (np.random.default_rng(SEED).permutation(n) % MOST_UNITS).astype(np.int32)


def in_groups(statistics: Array) -> Array:
    """(n, k) -> (MOST_UNITS, k), the rows of a group added up; as they are if they are no more."""
    n = len(statistics)
    if n <= MOST_UNITS:
        return statistics
    group = groups_of(n)
    return np.stack([np.bincount(group, weights=column, minlength=MOST_UNITS) for column in statistics.T], 1)


def counted_in_groups(n: int, column: NDArray[np.integer[Any]], width: int, weights: Array | None = None) -> Array:
    """(groups, width): of each group of rows what falls into each column, `column` being that of each row, (n,)."""
    cells = groups_of(n).astype(np.int64) * width + column
    shape = min(n, MOST_UNITS), width
    return np.bincount(cells, weights=weights, minlength=shape[0] * width).reshape(shape).astype(np.float64)


def resampled_sums(statistics: Array) -> Array:
    """(RESAMPLES, k): sums over rows drawn with replacement from `statistics`, (n, k)."""
    statistics = in_groups(statistics)
    rng, n = np.random.default_rng(SEED), len(statistics)
    sums = np.empty((RESAMPLES, statistics.shape[1]))
    for start in range(0, RESAMPLES, _CHUNK):
        counts = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(start, min(start + _CHUNK, RESAMPLES))]
        sums[start : start + _CHUNK] = np.stack(counts).astype(np.float64) @ statistics
    return sums


def figure_of(measure: Measure, undefined: str = "these rows do not define it") -> Figure | Undefined:
    """A measure's value with an interval from resampling rows. undefined: the reason to give where its value is NaN."""
    statistics, value, definition, n = measure.statistics, measure.value, measure.definition, measure.n
    if n == 0:
        return Undefined(0, definition, "no rows")
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = float(value(statistics.sum(0, keepdims=True))[0])
        if math.isnan(whole):
            return Undefined(n, definition, undefined)
        if n < 2:
            return Figure(whole, None, None, n, definition, "one row only, nothing to resample")
        return interval_of(whole, value(resampled_sums(statistics)), n, definition)


def interval_of(value: float, resampled: Array, n: int, definition: str) -> Figure:
    """A figure with the middle 95 % of its resamples, those left out in which it is not defined (NaN)."""
    kept = resampled[~np.isnan(resampled)]
    if len(kept) < 0.95 * len(resampled):
        return Figure(value, None, None, n, definition, "too few rows: not defined in more than 5 % of the resamples")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Figure(value, float(low), float(high), n, definition)


def mean_measure(values: Array, definition: str) -> Measure:
    """The mean of `values`, (n,)."""
    return Measure(np.stack([values, np.ones(len(values))], 1), _first_over_second, definition)


def _first_over_second(sums: Array) -> Array:
    return sums[:, 0] / sums[:, 1]


def ratio_interval(
    numerators: Array,
    denominators: Array,
    definition: str,
    transform: Callable[[Array], Array] = lambda x: x,
) -> Figure:
    """`transform(sum of numerators / sum of denominators)` with an interval from resampling units (documents, rows).

    Args:
        numerators: (n,) one a unit, such as its loss in nats.
        denominators: (n,) one a unit, such as its tokens.
    """
    n = len(numerators)
    value = float(transform(np.asarray(numerators.sum() / denominators.sum())))
    if n < 2:
        return Figure(value, None, None, n, definition, "one document only, nothing to resample")
    sums = resampled_sums(np.stack([numerators, denominators], 1).astype(np.float64))
    low, high = np.quantile(transform(sums[:, 0] / sums[:, 1]), [0.025, 0.975])
    return Figure(value, float(low), float(high), n, definition)


def mean_interval(values: Array, definition: str) -> Figure | Undefined:
    """The mean of `values`, (n,), with an interval from resampling rows."""
    return figure_of(mean_measure(values, definition))

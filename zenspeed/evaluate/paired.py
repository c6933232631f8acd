"""Two systems on the same rows: the difference of a measure, its interval, and whether chance alone would show as much.

Rows are resampled for both systems at once (paired bootstrap, Koehn 2004). The test swaps the two answers of rows at random
(approximate randomisation, Noreen 1989); of a share it is McNemar's exact one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zenspeed.evaluate.interval import MOST_UNITS, RESAMPLES, SEED, Array, Measure, in_groups, resampled_sums

_CHUNK = 50


class Effect(NamedTuple):
    """A measure of both systems and second minus first with its 95 % interval. NaN where it is not defined."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    """Two-sided: how often systems that are alike differ as much on such rows."""
    test: str
    deviations: Array
    """(RESAMPLES,) of the difference from its value, for those who add other sources of variance."""


def paired(first: Measure, second: Measure) -> Effect:
    """The effect of `second` against `first`, measures of the same rows in the same order."""
    both = np.concatenate([first.statistics, second.statistics], 1)
    k = first.statistics.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = both.sum(0, keepdims=True)
        a, b = float(first.value(whole[:, :k])[0]), float(second.value(whole[:, k:])[0])
        sums = resampled_sums(both)
        drawn = second.value(sums[:, k:]) - first.value(sums[:, :k])
    kept = drawn[~np.isnan(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (math.nan, math.nan)
    deviations = kept - (b - a) if len(kept) else np.zeros(1)
    hits = _hits(first, second)
    if hits is not None:
        gained, lost = int((hits[1] > hits[0]).sum()), int((hits[0] > hits[1]).sum())
        p, test = mcnemar(gained, lost), "McNemar's exact test"
    else:
        p, test = _by_swapping(first, second, abs(b - a)), f"{RESAMPLES:,} random swaps of answers"
    return Effect(a, b, b - a, float(low), float(high), p, test, deviations)


def _hits(first: Measure, second: Measure) -> tuple[Array, Array] | None:
    """Whether each row is right, of both, if the measure is a share of rows."""
    columns = (first.statistics, second.statistics)
    if all(s.shape[1] == 2 and (s[:, 1] == 1).all() and np.isin(s[:, 0], (0, 1)).all() for s in columns):
        return columns[0][:, 0], columns[1][:, 0]
    return None


def _by_swapping(first: Measure, second: Measure, seen: float) -> float:
    k = first.statistics.shape[1]
    both = in_groups(np.concatenate([first.statistics, second.statistics], 1))
    a, b = both[:, :k], both[:, k:]
    rng, as_far, n = np.random.default_rng(SEED), 0, len(both)
    assert n <= MOST_UNITS
    total = both.sum(0)
    for _ in range(0, RESAMPLES, _CHUNK):
        kept = rng.random((_CHUNK, n)) < 0.5
        one = kept.astype(np.float64) @ (a - b) + total[k:]  # sums of what the first system is given
        other = total[:k] + total[k:] - one
        with np.errstate(invalid="ignore", divide="ignore"):
            as_far += int((np.abs(second.value(other) - first.value(one)) >= seen - 1e-12).sum())
    return (as_far + 1) / (RESAMPLES + 1)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: a fair coin for each row that only one system has right."""
    n, k = gained + lost, min(gained, lost)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


class Spread(NamedTuple):
    """A difference of mean values of several runs of each system, both rows and seeds being drawn by chance."""

    difference: float
    low: float
    high: float
    p: float


def over_seeds(first: Sequence[float], second: Sequence[float], deviations: Array) -> Spread:
    """Second minus first, of runs that differ in their seed alone.

    Three sources are added: the rows' (`deviations`, of the bootstrap), and each system's spread over its runs, by Student's t
    with one less degree than runs, as Behrens and Fisher solve it. Takes two runs of each or more.
    """
    rng, draws = np.random.default_rng(SEED), 100_000
    difference = float(np.mean(second) - np.mean(first))
    total = difference + rng.choice(deviations, draws)
    for values in (first, second):
        m = len(values)
        total += np.std(values, ddof=1) / math.sqrt(m) * rng.standard_t(m - 1, draws)
    low, high = np.quantile(total, [0.025, 0.975])
    below = (1 + int((total <= 0).sum())) / (draws + 1)
    above = (1 + int((total >= 0).sum())) / (draws + 1)
    return Spread(difference, float(low), float(high), min(1.0, 2 * min(below, above)))

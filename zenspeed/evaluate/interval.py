"""Confidence intervals by bootstrap over the unit of sampling (Efron & Tibshirani 1993, percentile method)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0


class Figure(NamedTuple):
    """A measured value, its 95 % interval, and how many units it was sampled from. No interval: `reason` says why."""

    value: float
    low: float | None
    high: float | None
    n: int
    definition: str
    reason: str | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f} (no interval: {self.reason})"
        return f"{self.value:.4f}  [{self.low:.4f}, {self.high:.4f}]"


def ratio_interval(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    definition: str,
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda x: x,
) -> Figure:
    """`transform(sum of numerators / sum of denominators)` with an interval from resampling units (documents).

    Args:
        numerators: (n,) one a unit, such as its loss in nats.
        denominators: (n,) one a unit, such as its tokens.
    """
    n = len(numerators)
    value = float(transform(np.asarray(numerators.sum() / denominators.sum())))
    if n < 2:
        return Figure(value, None, None, n, definition, "one document only, nothing to resample")
    rng = np.random.default_rng(SEED)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        # How often each unit is drawn; exact, and no index array of n × resamples is held.
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        ratios[i] = (counts @ numerators) / (counts @ denominators)
    low, high = np.quantile(transform(ratios), [0.025, 0.975])
    return Figure(value, float(low), float(high), n, definition)

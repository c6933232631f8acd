"""Learning-rate range test (Smith 2017, arXiv 1506.01186), read with its noise in mind.

The rate grows from step to step; the loss falls, flattens, and climbs. Several seeds give several curves, and the choice is the
highest rate at which the loss still falls for certain: its mean slope lies more than two standard errors below zero. A single
lowest point, which is mostly luck, decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SMOOTH = 25  # of a curve's points, the share whose neighbourhood is averaged: 1 / 25 on each side
_CLEAR = 6.0
"""Standard errors by which the loss must fall over all; of 25 places some differ by four by chance."""


class Choice(NamedTuple):
    """A factor on the recipe's rates, and between what it comes out when a seed is left out."""

    factor: float
    low: float
    high: float
    found: bool
    """False where the loss falls nowhere for certain: the factor is then 1."""


def factors(steps: int, low: float = 1e-2, high: float = 1e2) -> np.ndarray:
    """`steps` factors on the recipe's rates, evenly on a logarithmic scale."""
    return np.geomspace(low, high, steps)


def choose(factor: np.ndarray, curves: Sequence[Sequence[float]]) -> Choice:
    """From the losses of each seed at each factor; a curve ends where its loss is no longer finite or far above its lowest."""
    at = _last_falling(factor, curves)
    if at is None:
        return Choice(1.0, 1.0, 1.0, False)
    others = [at]
    if len(curves) > 2:
        others = [x for i in range(len(curves)) if (x := _last_falling(factor, [*curves[:i], *curves[i + 1 :]])) is not None]
    return Choice(at, min([at, *others]), max([at, *others]), True)


def ended(losses: Sequence[float]) -> bool:
    """Whether a curve has gone so far up that more of it says nothing."""
    return not math.isfinite(losses[-1]) or losses[-1] > min(losses) + 0.5 * (losses[0] - min(losses)) + 1.0


def _last_falling(factor: np.ndarray, curves: Sequence[Sequence[float]]) -> float | None:
    length = min(len(curve) for curve in curves)
    width = max(1.0, len(factor) / _SMOOTH)
    smooth = np.stack([_smoothed(np.asarray(curve[:length], np.float64), width) for curve in curves])
    slopes = np.gradient(smooth, axis=1)
    mean = slopes.mean(0)
    # Curves of several seeds share no noise; where there are too few of them, that of one curve's slopes stands for it.
    spread = slopes.std(0, ddof=1) if len(curves) > 1 else np.full(length, np.diff(smooth[0], 2).std() * width)
    error = _smoothed(spread, 2 * width) / math.sqrt(len(curves))
    whole = smooth.mean(0)
    bottom = int(whole.argmin())
    centred = smooth - smooth.mean(1, keepdims=True)  # seeds begin at losses of their own
    unsure = centred.std(0, ddof=1) if len(curves) > 1 else spread * width
    if whole[0] - whole[bottom] < _CLEAR * unsure.mean() / math.sqrt(len(curves)):
        return None
    falling = np.flatnonzero((mean + 2 * error < 0) & (np.arange(length) <= bottom))
    return float(factor[falling[-1]]) if len(falling) else None


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian mean over neighbours; values that are not finite are left out."""
    index = np.arange(len(values))
    weights = np.exp(-0.5 * ((index[:, None] - index) / width) ** 2) * np.isfinite(values)
    return weights @ np.nan_to_num(values, posinf=0.0, neginf=0.0) / np.maximum(weights.sum(1), 1e-12)

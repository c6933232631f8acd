"""The gradient noise scale and what follows for the batch size (McCandlish et al. 2018, arXiv 1812.06162).

The squared norm of a gradient over b sequences has the mean |G|² + S / b: the true gradient, and noise that falls with b. Two
sizes, single micro-batches and the whole batch, give both (appendix A.1). B = S / |G|² is the critical batch: training with it
needs twice the updates of an endless batch, and twice the data of a tiny one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Noise(NamedTuple):
    """The critical batch in sequences, with its 95 % interval over the measured updates; None: not to be told."""

    critical: float | None
    low: float | None
    high: float | None


def critical_batch(small: Sequence[float], big: Sequence[float], num_small: float, num_big: float) -> Noise:
    """From squared gradient norms of each update: the mean over its micro-batches of `num_small` sequences, and that of the
    whole batch of `num_big`."""
    a, b = np.asarray(small, np.float64), np.asarray(big, np.float64)
    gradient = (num_big * b - num_small * a) / (num_big - num_small)
    noise = (a - b) / (1 / num_small - 1 / num_big)
    drawn = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    # Means first, then the quotient: single updates are far too noisy for one.
    ratios = noise[drawn].mean(1) / np.where((g := gradient[drawn].mean(1)) > 0, g, np.nan)
    if gradient.mean() <= 0 or noise.mean() <= 0:
        return Noise(None, None, None)
    known = ratios[np.isfinite(ratios) & (ratios > 0)]
    low, high = (float(x) for x in np.quantile(known, [0.025, 0.975])) if len(known) > len(ratios) / 2 else (None, None)
    return Noise(float(noise.mean() / gradient.mean()), low, high)


def fastest_batch(critical: float, update_seconds: float, sequence_seconds: float, multiple: int) -> int:
    """The batch that reaches a loss soonest: a power of two times `multiple`.

    With 1 + critical / B updates needed (equation 2.11), each taking update_seconds + B · sequence_seconds, the product is
    least at B = √(critical · update_seconds / sequence_seconds).
    """
    best = math.sqrt(critical * update_seconds / max(sequence_seconds, 1e-12))
    return multiple * 2 ** max(0, round(math.log2(max(1.0, best / multiple))))

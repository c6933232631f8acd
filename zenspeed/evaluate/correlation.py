"""Figures of predicted numbers: Pearson's and Spearman's correlation, mean absolute and squared error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from zenspeed.evaluate.curves import mean_ranks
from zenspeed.evaluate.interval import Array, Figure, Figures, Measure, Undefined, figure_of, mean_measure

_CONSTANT = "all truths, or all predictions, are the same"
_ERRORS = ("mean_absolute_error", "mean_squared_error")
_DEFINITIONS = {
    "pearson": "Pearson's correlation of prediction and truth",
    "spearman": "Spearman's correlation of ranks of prediction and truth, ties sharing their mean rank",
}


def number_figures(truth: Array, predictions: Array) -> Figures:
    """Correlations with the interval of Fisher's z (Spearman's: Bonett & Wright 2000); errors with a bootstrap over rows."""
    figures: Figures = {
        "pearson": _correlation(truth, predictions, _DEFINITIONS["pearson"], lambda r: 1.0),
        "spearman": _correlation(
            mean_ranks(truth), mean_ranks(predictions), _DEFINITIONS["spearman"], lambda r: math.sqrt(1 + r * r / 2)
        ),
    }
    measures = number_measures(truth, predictions, _ERRORS)
    return figures | {name: figure_of(measures[name]) for name in _ERRORS}


def number_measures(truth: Array, predictions: Array, wanted: Sequence[str] | None = None) -> dict[str, Measure]:
    """The same as functions of sums over rows; Spearman's by the ranks among all rows. wanted: None: all."""
    error = predictions - truth
    makers: dict[str, Callable[[], Measure]] = {
        "pearson": lambda: Measure(_moments(truth, predictions), _pearson, _DEFINITIONS["pearson"]),
        "spearman": lambda: Measure(_moments(mean_ranks(truth), mean_ranks(predictions)), _pearson, _DEFINITIONS["spearman"]),
        "mean_absolute_error": lambda: mean_measure(np.abs(error), "mean absolute error")._replace(higher_is_better=False),
        "mean_squared_error": lambda: mean_measure(error**2, "mean squared error")._replace(higher_is_better=False),
    }
    return {name: make() for name, make in makers.items() if wanted is None or name in wanted}


def _correlation(a: Array, b: Array, definition: str, widen: Callable[[float], float]) -> Figure | Undefined:
    n = len(a)
    if n < 2 or a.min() == a.max() or b.min() == b.max():
        return Undefined(n, definition, _CONSTANT if n > 1 else "fewer than two rows")
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if n < 4 or abs(r) > 1 - 1e-12:
        return Figure(r, None, None, n, definition, "fewer than four rows" if n < 4 else "the correlation is perfect")
    half = 1.959963984540054 * widen(r) / math.sqrt(n - 3)
    return Figure(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n, definition)


def _moments(x: Array, y: Array) -> Array:
    """(n, 6): 1, x, y, x², y², xy of values moved to mean 0, so that sums keep their digits."""
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1)


def _pearson(s: Array) -> Array:
    n, x, y, xx, yy, xy = s.T
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return (n * xy - x * y) / np.where(spread > 0, spread, np.nan)

"""Whether probabilities mean what they say: calibration error, reliability diagram, temperature scaling (Guo et al. 2017)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zenspeed.evaluate.interval import (
    SEED,
    Array,
    Figure,
    Figures,
    Measure,
    Undefined,
    counted_in_groups,
    figure_of,
    mean_interval,
)

BINS = 15
_TINY = 1e-12
_FIT_ROWS = 20_000
"""A temperature is one number: more rows than these do not change it, and are left out by chance."""
_DEFINITIONS = {
    "log_loss": "mean negative log probability of the label, in nats",
    "brier": "mean over rows of the squared distance between probabilities and the label as 0 or 1, summed over labels",
    "ece": f"expected calibration error of the prediction's probability, {BINS} bins of equal width",
    "temperature": "what logits are divided by for the lowest log loss on these rows; above 1: too sure of itself",
    "log_loss_scaled": "log loss after temperature scaling, each half of the rows scaled by the other half's temperature",
    "ece_scaled": "calibration error after temperature scaling, each half of the rows scaled by the other half's temperature",
}


def calibration_figures(probabilities: Array, truth: NDArray[np.int64]) -> Figures:
    """Log loss, Brier score and calibration error, before and after temperature scaling.

    Args:
        probabilities: (n, K). truth: (n,) number of the label.
    """
    n = len(truth)
    reason = _no_probabilities(probabilities)
    if reason is not None:
        return {name: Undefined(n, definition, reason) for name, definition in _DEFINITIONS.items()}
    rows = np.arange(n)
    squares = (probabilities**2).sum(1) - 2 * probabilities[rows, truth] + 1
    figures: Figures = {
        "log_loss": mean_interval(_log_losses(probabilities, truth), _DEFINITIONS["log_loss"]),
        "brier": mean_interval(squares, _DEFINITIONS["brier"]),
        "ece": _calibration_error(probabilities, truth, _DEFINITIONS["ece"]),
    }
    if n < 20:
        few = {name: Undefined(n, _DEFINITIONS[name], "fewer than 20 rows") for name in list(_DEFINITIONS)[3:]}
        return figures | few
    scaled, temperature = cross_scaled(probabilities, truth)
    figures["temperature"] = temperature
    figures["log_loss_scaled"] = mean_interval(_log_losses(scaled, truth), _DEFINITIONS["log_loss_scaled"])
    figures["ece_scaled"] = _calibration_error(scaled, truth, _DEFINITIONS["ece_scaled"])
    return figures


def _no_probabilities(scores: Array) -> str | None:
    sums = scores.sum(1)
    if scores.min(initial=0.0) < 0 or np.abs(sums - 1).max(initial=0.0) > 1e-3:
        return "the scores are no probabilities: not all are from 0 to 1 and add up to 1"
    return None


def _log_losses(probabilities: Array, truth: NDArray[np.int64]) -> Array:
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], _TINY))


def _binned(probabilities: Array, truth: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_], NDArray[np.int64]]:
    """(n,) each: probability of the prediction, whether it is right, its bin."""
    confidence = probabilities.max(1)
    # As the bins of Guo et al., open below: (0, 1/15], (1/15, 2/15], …
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return confidence, probabilities.argmax(1) == truth, bins


def _calibration_error(probabilities: Array, truth: NDArray[np.int64], definition: str) -> Figure | Undefined:
    """Sum over bins of |right − confidence|, over n: each bin's difference is a sum over rows."""
    confidence, right, bins = _binned(probabilities, truth)
    n = len(truth)
    gaps = counted_in_groups(n, bins, BINS, right - confidence)
    rows = counted_in_groups(n, np.zeros(n, np.int32), 1)
    statistics = np.concatenate([gaps, rows], 1)
    return figure_of(Measure(statistics, lambda s: np.abs(s[:, :BINS]).sum(1) / s[:, BINS], definition, rows=n))


def reliability(probabilities: Array, truth: NDArray[np.int64]) -> list[dict[str, float]]:
    """Of each bin that holds rows: `n`, mean `confidence`, share that is right as `accuracy`; for the diagram."""
    if _no_probabilities(probabilities) is not None:
        return []
    confidence, right, bins = _binned(probabilities, truth)
    n = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=x, minlength=BINS) for x in (confidence, right)]
    return [
        {"n": int(n[i]), "confidence": float(sums[0][i] / n[i]), "accuracy": float(sums[1][i] / n[i])}
        for i in np.flatnonzero(n)
    ]


def fit_temperature(probabilities: Array, truth: NDArray[np.int64]) -> float:
    """The temperature of the lowest log loss, from 0.05 to 20, by golden section: the loss is convex in its inverse."""
    if len(truth) > _FIT_ROWS:
        some = np.random.default_rng(SEED).choice(len(truth), _FIT_ROWS, replace=False)
        probabilities, truth = probabilities[some], truth[some]
    logits = np.log(np.maximum(probabilities, _TINY))

    def loss(log_temperature: float) -> float:
        return float(_log_losses(_softmax(logits / math.exp(log_temperature)), truth).mean())

    low, high, ratio = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    while high - low > 1e-4:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    return math.exp((low + high) / 2)


def cross_scaled(probabilities: Array, truth: NDArray[np.int64]) -> tuple[Array, Figure]:
    """(n, K) probabilities, each half scaled by the temperature of the other; and the temperature of all rows, a figure."""
    order = np.random.default_rng(SEED).permutation(len(truth))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled = np.empty_like(probabilities)
    found = [fit_temperature(probabilities[half], truth[half]) for half in halves]
    for half, temperature in zip(halves, reversed(found), strict=True):
        scaled[half] = scale(probabilities[half], temperature)
    reason = f"fitted; {found[0]:.3f} and {found[1]:.3f} on random halves of the rows"
    whole = fit_temperature(probabilities, truth)
    return scaled, Figure(whole, None, None, len(truth), _DEFINITIONS["temperature"], reason)


def scale(probabilities: Array, temperature: float) -> Array:
    """Probabilities as if the logits had been divided by `temperature`."""
    return _softmax(np.log(np.maximum(probabilities, _TINY)) / temperature)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

"""Intervals cover the truth as often as they say, and say when they cannot be given."""

from __future__ import annotations

import math

import numpy as np

from zenspeed.evaluate.interval import ratio_interval
from zenspeed.evaluate.language import language_figures


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        tokens = rng.integers(50, 200, size=60).astype(np.float64)
        losses = tokens * rng.normal(3.0, 0.5, size=60)
        figure = ratio_interval(losses, tokens, "")
        assert figure.low is not None and figure.high is not None
        hits += figure.low <= 3.0 <= figure.high
    assert 180 <= hits <= 199


def test_one_document_has_no_interval_and_says_so() -> None:
    figure = ratio_interval(np.array([6.0]), np.array([2.0]), "")
    assert figure.value == 3.0 and figure.low is None and "one document" in str(figure)


def test_figures() -> None:
    figures = language_figures(np.array([10.0, 20.0]), np.array([10.0, 10.0]), np.array([30, 10]))
    assert figures["loss"].value == 1.5
    assert figures["perplexity"].value == math.exp(1.5)
    assert figures["bits_per_byte"].value == 30 / 40 / math.log(2)

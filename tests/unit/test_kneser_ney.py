"""The 5-gram model that language models are held against: its probabilities add up, and its counts are those of the paper."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "tasks"))
from kneser_ney import KneserNey


def test_probabilities_add_up_to_one_behind_every_history() -> None:
    tokens = np.random.default_rng(0).integers(0, 7, 400)
    model = KneserNey(tokens, 3, 9)
    for history in [(), (1,), (1, 2), (8, 8), (3, 8)]:
        assert sum(model.probability((*history, word)) for word in range(9)) == pytest.approx(1.0)
    losses = model.losses(tokens[:50])
    assert losses[0] == pytest.approx(-np.log(model.probability((int(tokens[0]),))))
    assert losses[9] == pytest.approx(-np.log(model.probability(tuple(map(int, tokens[7:10])))))


def test_lower_orders_count_what_a_word_was_seen_behind() -> None:
    """`d` comes often but always behind `c`, `b` behind two words: so `b` is the likelier one behind what was never seen."""
    a, b, c, d = range(4)
    model = KneserNey(np.array([a, b, c, d, c, d, c, d, c, b, a]), 2, 5)
    assert model.counts[2][(c, d)] == 3 and model.counts[1][(d,)] == 1 and model.counts[1][(b,)] == 2
    assert model.probability((4, b)) > model.probability((4, d))

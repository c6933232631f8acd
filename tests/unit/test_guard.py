"""Which updates are blocked, when a run rolls back, and what is left alone."""

from __future__ import annotations

import math
import random

import pytest

from zenspeed.guard import Guard
from zenspeed.recipe import GuardConfig


def warm(clip: float | None = 1.0, **keys: float) -> Guard:
    guard, rng = Guard(GuardConfig(**keys), clip), random.Random(0)  # type: ignore[arg-type]
    for _ in range(64):
        assert guard.allows(3.0 + rng.gauss(0, 0.2), 0.5 + 0.1 * rng.random())
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 0.5, "loss is nan"),
        (math.inf, 0.5, "loss is inf"),
        (3.0, math.nan, "norm of the gradient is nan"),
        (3.0, math.inf, "norm of the gradient is inf"),
        (6.0, 0.5, "deviations above"),
        (3.0, 1e9, "× the usual one"),
    ],
)
def test_blocked_with_a_reason(loss: float, norm: float, reason: str) -> None:
    guard = warm()
    before = guard.state_dict()
    assert not guard.allows(loss, norm)
    assert reason in guard.reason
    assert guard.state_dict() == before, "what was blocked is not what later ones are compared with"


def test_ordinary_noise_and_small_gradients_are_left_alone() -> None:
    guard, rng = Guard(GuardConfig(), 1.0), random.Random(1)
    for step in range(2_000):  # heavy tails, a falling loss
        assert guard.allows(5 * math.exp(-step / 500) + abs(rng.gauss(0, 0.1)), math.exp(rng.gauss(-1, 0.7))), guard.reason
    quiet = warm(clip=1.0)
    quiet.norms = [1e-4] * 64
    assert quiet.allows(3.0, 0.9), "below the clipping norm, however small the others were"
    assert warm(spike_sigmas=None, norm_factor=None).allows(1e6, 1e30)  # type: ignore[arg-type]


def test_rolls_back_after_events_within_the_window_and_so_often_only() -> None:
    guard = Guard(GuardConfig(events=3, window=16, rollbacks=2), None)
    assert [guard.set_aside(step) for step in (1, 2, 40)] == [False, False, False], "too far apart"
    assert [guard.set_aside(step) for step in (41, 42)] == [False, True]
    saved = Guard(GuardConfig(), None)
    assert saved.allows(2.0, 1.0)
    guard.rolled_back(saved.state_dict())
    assert (guard.losses, guard.aside, guard.rollbacks) == ([2.0], [], 1)
    assert [guard.set_aside(step) for step in (41, 42, 43)] == [False, False, True]
    guard.rolled_back(saved.state_dict())
    assert not any(guard.set_aside(step) for step in range(41, 60)), "the last way back is used"
    again = Guard(GuardConfig(), None)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()

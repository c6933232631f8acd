"""When a run ends: by a signal, by the death of the launcher, by a loss that was asked for."""

from __future__ import annotations

import math
import os
import signal

import pytest

from zenspeed.config import InputError, load
from zenspeed.pace import Aim, Clock, Interrupt
from zenspeed.recipe import Recipe
from zenspeed.recovery import Counters


def test_a_signal_asks_once_and_interrupts_twice() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_ends_without_its_launcher_and_a_single_run_does_not(launched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    else:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interrupt.asked is launched


class Stopped(Clock):
    """A clock that is set by hand, of a run whose evaluations take 2 s."""

    now = 100.0

    def elapsed(self) -> float:
        return self.now

    def expected_evaluation(self) -> float:
        return 2.0


def test_a_target_is_looked_at_when_it_is_near_and_reached_by_the_upper_end_of_its_interval() -> None:
    clock = Stopped(load(Recipe, None, ["train.minutes=5"]), Counters(), 1.0)
    aim = Aim(2.0, 3.0, clock)  # bits per byte, bytes per token
    nats = 2.0 * 3.0 * math.log(2)
    assert not aim.looks()
    aim.saw(1.2 * nats)
    assert not aim.looks()
    aim.saw(1.04 * nats)
    assert aim.looks()
    aim.looked()
    clock.now = 119.0
    assert not aim.looks()  # that evaluation would make a ninth of the time
    clock.now = 120.0
    assert aim.looks()
    assert aim.reached(1.99) and not aim.reached(2.01) and not aim.reached(None)
    none = Aim(None, 3.0, clock)
    none.saw(0.0)
    assert not none.looks() and not none.reached(0.1)


def test_a_target_is_for_language_models() -> None:
    with pytest.raises(InputError, match=r"train.target_loss: bits per byte are of language_model, not of classification"):
        load(Recipe, None, ["train.target_loss=2", "task.kind=classification", "task.text=a", "task.label=b"])

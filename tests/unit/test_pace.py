"""When a run ends: by a signal, by the death of the launcher, by a loss that was asked for."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import pytest

from zenspeed.config import InputError, load
from zenspeed.display import Display
from zenspeed.machine import process_began
from zenspeed.pace import Aim, Clock, Interrupt
from zenspeed.recipe import Recipe
from zenspeed.recovery import Counters
from zenspeed.training import Result, Run, train


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


def test_the_time_of_a_run_is_that_since_the_call_and_of_a_command_that_since_its_process_began(tmp_path: Path) -> None:
    """A notebook trains for five minutes although its process is an hour old."""
    before, seen, elapsed = time.perf_counter(), [], []

    def loop(run: Run, interrupt: Interrupt) -> Result:
        seen.append(run.began)
        elapsed.append(Clock(run.recipe, run.counters, 1.0, run.began).elapsed())
        return Result(run.folder, 0, None, interrupted=True)

    (tmp_path / "t.txt").write_text("a text of some words. " * 300, encoding="utf-8")
    tiny = ["model.layers=1", "model.width=16", "model.heads=2", "model.context=16", "tokenizer.vocab_size=270"]
    places = [f"data.source={tmp_path / 't.txt'}", f"data.cache={tmp_path / 'cache'}", f"run.folder={tmp_path / 'run'}"]
    recipe = load(Recipe, None, [*tiny, *places, "data.section_characters=80", "train.batch_size=2", "train.precision=fp32"])
    train(recipe, display=Display(enabled=False), loop=loop)
    assert elapsed[0] < time.perf_counter() - before
    train(recipe, display=Display(enabled=False), loop=loop, began=process_began() + 60)
    assert abs(elapsed[1] - (time.perf_counter() - process_began() - 60)) < time.perf_counter() - before
    assert before < seen[0] < time.perf_counter() and process_began() < before
    assert abs(seen[1] - 60 - process_began()) < 1.0, "of one clock"


class Stopped(Clock):
    """A clock that is set by hand, of a run whose evaluations take 2 s."""

    now = 100.0

    def elapsed(self) -> float:
        return self.now

    def expected_evaluation(self) -> float:
        return 2.0


def test_a_target_is_looked_at_when_it_is_near_and_reached_by_the_upper_end_of_its_interval() -> None:
    clock = Stopped(load(Recipe, None, ["train.minutes=5"]), Counters(), 1.0, 0.0)
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

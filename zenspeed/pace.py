"""How far a run is by steps and by the clock, what is due, and whether it is asked to stop."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

from zenspeed.recipe import Recipe
from zenspeed.recovery import Counters

WRAP_UP_SECONDS = 2.0  # checkpoint, curve, report and samples at the end of a run with a time limit


class Clock:
    """How far a run is, by steps or by wall time: since `began` (of time.perf_counter), and what earlier processes took."""

    def __init__(self, recipe: Recipe, counters: Counters, evaluation_updates: float, began: float) -> None:
        self.recipe, self.counters = recipe, counters
        self.offset = counters.elapsed - began
        if counters.started is None:
            counters.started = self.elapsed()
        self.step_seconds = 0.0
        self.steps, self.steps_seconds = 0, 0.0  # all but the first two, which are slow
        self.evaluation_seconds: float | None = None  # of the last one; before there was one it is estimated
        self.evaluation_updates = evaluation_updates  # of as many tokens as an evaluation

    def elapsed(self) -> float:
        return time.perf_counter() + self.offset

    def step_took(self, seconds: float) -> None:
        self.steps += 1
        self.steps_seconds += seconds if self.steps > 2 else 0.0
        # Downwards at once: the first updates of a process are slow and say little about the others.
        slower = self.step_seconds and seconds > self.step_seconds
        self.step_seconds = 0.9 * self.step_seconds + 0.1 * seconds if slower else seconds

    def evaluation_took(self, seconds: float) -> None:
        self.evaluation_seconds = seconds

    def expected_evaluation(self) -> float:
        """Seconds an evaluation takes: as the last one, else by its tokens, a forward being a third of an update."""
        if self.evaluation_seconds is not None:
            return self.evaluation_seconds
        mean = self.steps_seconds / (self.steps - 2) if self.steps > 2 else self.step_seconds
        return max(mean, self.step_seconds) * self.evaluation_updates / 3

    def progress(self) -> float:
        """0 … 1. With a time limit, 1 is when the last evaluation and what is written at the end still fit, and no update."""
        train = self.recipe.train
        if train.steps is not None:
            return min(1.0, self.counters.step / train.steps)
        assert train.minutes is not None and self.counters.started is not None
        end = 60 * train.minutes - WRAP_UP_SECONDS - 1.1 * self.expected_evaluation() - 0.5 * self.step_seconds
        return min(1.0, (self.elapsed() - self.counters.started) / max(1e-9, end - self.counters.started))

    def seconds_left(self) -> float:
        train = self.recipe.train
        if train.minutes is not None:
            return max(0.0, 60 * train.minutes - self.elapsed())
        assert train.steps is not None
        return (train.steps - self.counters.step) * self.step_seconds


class Due:
    """When the next checkpoint and evaluation are due: every so many steps if the recipe says so, else by time and progress."""

    def __init__(self, recipe: Recipe, counters: Counters, clock: Clock) -> None:
        self.recipe, self.counters, self.clock = recipe, counters, clock
        self._saved_step = self._evaluated_step = counters.step
        self._saved_at = clock.elapsed()
        self._next_evaluation = clock.progress() + 0.1

    def save(self) -> bool:
        every = self.recipe.checkpoint.every
        if self.counters.step == self._saved_step:
            return False
        return (
            self.clock.elapsed() - self._saved_at > 60
            if every is None
            else _passed(every, self._saved_step, self.counters.step)
        )

    def saved(self) -> None:
        self._saved_step, self._saved_at = self.counters.step, self.clock.elapsed()

    def went_back(self) -> None:
        """The run is as of an earlier step: what was due at later ones is due again."""
        self._saved_step = self._evaluated_step = self.counters.step

    def evaluate(self) -> bool:
        every = self.recipe.evaluate.every
        if self.counters.step == self._evaluated_step or every == 0:
            return False
        return (
            self.clock.progress() >= self._next_evaluation
            if every is None
            else _passed(every, self._evaluated_step, self.counters.step)
        )

    def evaluated(self) -> None:
        self._evaluated_step = self.counters.step
        # At most a tenth of the time goes into evaluation.
        left = self.clock.seconds_left() / max(1e-9, 1.0 - self.clock.progress())
        self._next_evaluation = self.clock.progress() + max(0.1, 10 * self.clock.expected_evaluation() / max(1e-9, left))


def _passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies after `before` and not after `now`."""
    return now // every > before // every


class Smooth:
    """An exponential mean, unbiased from the first value on."""

    def __init__(self, keep: float = 0.9) -> None:
        self.keep, self.value, self.weight = keep, 0.0, 0.0

    def add(self, value: float) -> float:
        self.value = self.keep * self.value + (1 - self.keep) * value
        self.weight = self.keep * self.weight + (1 - self.keep)
        return self.value / self.weight


class Aim:
    """The loss at which a run may end before its time (train.target_loss).

    An evaluation costs much, so it is made when the smoothed training loss is near the target, dropout and noise allowed for,
    and not so often that it takes more than a tenth of the time.
    """

    NEAR = 1.05

    def __init__(self, target: float | None, bytes_per_token: float, clock: Clock) -> None:
        self.target, self.clock = target, clock
        self.nats = None if target is None else target * math.log(2) * bytes_per_token
        self._near, self._looked_at = False, -math.inf

    def saw(self, loss: float) -> None:
        """The smoothed training loss of a step, in nats a token."""
        self._near = self.nats is not None and loss <= self.NEAR * self.nats

    def looks(self) -> bool:
        """Whether an evaluation is due for it."""
        return self._near and self.clock.elapsed() - self._looked_at >= 10 * self.clock.expected_evaluation()

    def looked(self) -> None:
        self._looked_at = self.clock.elapsed()

    def reached(self, high: float | None) -> bool:
        """Whether it is, by the upper end of an evaluation's interval; None where there is too little for one."""
        return self.target is not None and high is not None and high <= self.target


class Interrupt:
    """Ctrl-C or SIGTERM once: `asked` becomes true and the loop ends in order. Twice: KeyboardInterrupt at once.

    A rank whose launcher is gone (kill -9 leaves it no time to say so) is asked to end as well; a run without a launcher may
    lose its parent, as under `nohup`.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._launcher = os.getppid() if "LOCAL_RANK" in os.environ else None

    @property
    def asked(self) -> bool:
        return self._signalled or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        else:
            self._before = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True

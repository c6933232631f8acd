"""`engine.timers` and `wall_clock_breakdown`: how long forward, backward, reducing gradients and the update take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FORWARD, BACKWARD, REDUCE, STEP = "fwd", "bwd", "bwd_allreduce", "step"


class Timer:
    """A stopwatch that adds up; on a GPU it waits for the device before it looks at the clock."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.seconds = name, 0, 0.0
        self._began: float | None = None

    def start(self) -> None:
        _wait_for_device()
        self._began = time.perf_counter()

    def stop(self, reset: bool = False, record: bool = True) -> None:
        """`reset`: forgets what came before. `record=False`: does not count this time."""
        if self._began is None:
            return
        _wait_for_device()
        seconds, self._began = time.perf_counter() - self._began, None
        if reset:
            self.reset()
        if record:
            self.seconds, self.count = self.seconds + seconds, self.count + 1

    def reset(self) -> None:
        self.count, self.seconds = 0, 0.0

    def elapsed(self, reset: bool = True) -> float:
        """Milliseconds since the last reset."""
        total = 1e3 * self.seconds
        if reset:
            self.reset()
        return total

    def mean(self) -> float:
        """Mean milliseconds of a start and stop."""
        return 1e3 * self.seconds / max(1, self.count)


class Timers:
    """Timers by name; asking for a name makes it."""

    def __init__(self) -> None:
        self._timers: dict[str, Timer] = {}

    def __call__(self, name: str) -> Timer:
        return self._timers.setdefault(name, Timer(name))

    def get_timers(self) -> dict[str, Timer]:
        return self._timers

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        timer = self(name)
        timer.start()
        try:
            yield
        finally:
            timer.stop()

    def log(self, names: Sequence[str], normalizer: float = 1.0, reset: bool = True) -> None:
        """Prints milliseconds of the timers that have run, divided by `normalizer`."""
        if line := self.line(names, normalizer, reset):
            print(line, flush=True)

    def line(self, names: Sequence[str], normalizer: float = 1.0, reset: bool = True) -> str:
        found = [(n, self._timers[n].elapsed(reset) / normalizer) for n in names if n in self._timers]
        return "time (ms) | " + " | ".join(f"{name}: {value:.2f}" for name, value in found) if found else ""


def _wait_for_device() -> None:
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()

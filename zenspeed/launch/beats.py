"""Which processes of a run are too long in a phase, by the beats that they write (zenspeed/health.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zenspeed.health import Beat, read_beat
from zenspeed.recipe import GuardConfig


class Late(NamedTuple):
    """A process that has been in a phase for longer than it may."""

    rank: int
    beat: Beat
    limit: float

    def __str__(self) -> str:
        return f"within {self.limit:.0f} s of phase {self.beat.phase} (step {self.beat.step})"


class Beats:
    """The beats of the processes that are followed. `slowest`: a step, in seconds, of earlier attempts."""

    def __init__(self, health: Path, limits: GuardConfig, slowest: float = 0.0) -> None:
        self.health, self.limits, self.slowest = health, limits, slowest
        self.last: dict[int, Beat] = {}
        self._since: dict[int, float] = {}
        self._stale: dict[int, Beat] = {}
        self._first: dict[int, int] = {}  # step of each process's first beat of a step that is over

    def follow(self, rank: int) -> None:
        """A process was started; what an earlier one wrote says nothing of it."""
        self._stale[rank] = read_beat(self.health, rank)
        self.last[rank], self._since[rank] = Beat(0, 0, "start"), time.monotonic()
        self._first.pop(rank, None)

    def late(self, ranks: Sequence[int]) -> list[Late]:
        """Looks at the beats of `ranks`."""
        now, out = time.monotonic(), []
        for rank in ranks:
            beat, seen = self.last[rank], read_beat(self.health, rank)
            if seen not in (beat, self._stale[rank]):
                if beat.phase == "step":
                    self._took(rank, beat.step, now - self._since[rank])
                self.last[rank], self._since[rank] = seen, now
                continue
            limit = self._deadline(rank, beat)
            if limit is not None and now - self._since[rank] > limit:
                out.append(Late(rank, beat, limit))
        return out

    def _took(self, rank: int, step: int, seconds: float) -> None:
        """A step is over. The first one is slow, says little, and has the deadline of a start."""
        if step > self._first.setdefault(rank, step):
            self.slowest = max(self.slowest, seconds)

    def _deadline(self, rank: int, beat: Beat) -> float | None:
        limits = self.limits
        if beat.phase == "step":
            if rank not in self._first:
                return limits.start_seconds
            return limits.step_seconds or max(10.0, 10 * self.slowest)
        return {
            "start": limits.start_seconds,
            "build": limits.start_seconds,
            "save": limits.save_seconds,
            "evaluate": limits.evaluate_seconds,
            "finish": limits.evaluate_seconds,
        }.get(beat.phase)  # data may take as long as it takes, and so may waiting for others at a parameter server

"""What collectives moved and how long they took, counted where the engine calls them.

A collective that is counted is also waited for at once, so that its time is its own and not that of what it overlapped with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """All calls of one collective with one message size."""

    op: str
    num_bytes: int
    calls: int
    seconds: float
    ranks: int

    @property
    def algorithm_bandwidth(self) -> float:
        """Bytes of the message per second."""
        return self.num_bytes * self.calls / max(self.seconds, 1e-12)

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second that a link must carry, comparable between collectives (PERFORMANCE.md of NVIDIA's nccl-tests)."""
        n = self.ranks
        factor = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0}.get(self.op, (n - 1) / n)
        return self.algorithm_bandwidth * factor


class Traffic:
    """A count of collectives. `ops`: only these; empty: all. `say`: is told of each call."""

    def __init__(self, ops: tuple[str, ...] = (), say: Callable[[str], None] | None = None) -> None:
        self._ops, self._say = ops, say
        self._counts: dict[tuple[str, int, int], tuple[int, float]] = {}

    def run(self, op: str, message: Tensor, ranks: int, start: Callable[[], Any]) -> None:
        """Does the collective that `start` begins (it gives something to wait for, or None when done) and counts it."""
        began = time.perf_counter()
        work = start()
        if work is not None:
            work.wait()
        seconds = time.perf_counter() - began
        if self._ops and op not in self._ops:
            return
        key = (op, message.numel() * message.element_size(), ranks)
        count, total = self._counts.get(key, (0, 0.0))
        self._counts[key] = (count + 1, total + seconds)
        if self._say is not None:
            self._say(f"comm op: {op} | time (ms): {1e3 * seconds:.2f} | msg size: {key[1]:,} bytes | ranks: {ranks}")

    def calls(self) -> list[Call]:
        """By collective, then message size."""
        return [Call(op, size, count, s, ranks) for (op, size, ranks), (count, s) in sorted(self._counts.items())]

    def summary(self) -> str:
        """A table for people."""
        lines = [
            f"{'collective':16}{'bytes':>14}{'count':>8}{'total ms':>11}{'mean ms':>10}{'algbw GB/s':>12}{'busbw GB/s':>12}"
        ]
        for call in self.calls():
            milliseconds = 1e3 * call.seconds
            lines.append(
                f"{call.op:16}{call.num_bytes:14,}{call.calls:8d}{milliseconds:11.2f}{milliseconds / call.calls:10.2f}"
                f"{call.algorithm_bandwidth / 1e9:12.2f}{call.bus_bandwidth / 1e9:12.2f}"
            )
        return "\n".join(lines)

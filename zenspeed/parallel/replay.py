"""Collectives of a micro-batch, counted, so that a rank whose micro-batch failed in the middle can do the rest of them.

The other ranks go on and wait for this one. It runs a micro-batch that surely fits, in which the collectives that it did
before are left out; what comes of it is of no use to anyone and is forgotten on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Collectives:
    """Shared by all buckets of a module."""

    def __init__(self) -> None:
        self.position = 0
        self._done_before = 0

    def begin(self) -> None:
        """A micro-batch begins."""
        self.position = self._done_before = 0

    def begin_again(self) -> None:
        """It failed, and another is run in its place."""
        self._done_before, self.position = max(self.position, self._done_before), 0

    def run(self, start: Callable[[], T]) -> T | None:
        """`start()`, the micro-batch's next collective, unless it was done before; counted when it has begun."""
        result = start() if self.position >= self._done_before else None
        self.position += 1
        return result

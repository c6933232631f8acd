"""Rows that wait for the model, and which of them are answered together.

The oldest row is always in the next batch, so that none waits for ever. The rest are those most like it in length, as many
as the budget takes: a short text is not kept until a long one beside it is done, and a batch ends soon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

ROWS = 256
"""Rows of a batch at most."""
BATCH_TOKENS = 1024
"""Of a batch, each of its rows taken as long as its longest. A longer row is a batch by itself."""
KERNEL_TOKENS = 384
"""The same where encoder.cpp answers, whose products are fast with few rows: of what a larger batch saves, little is left, and
rows wait longer for the batch before them. In a simulation at 80 % load the 99th percentile is least between 256 and 512."""

Texts = Sequence[np.ndarray]
"""Tokens of each text of a row."""
Done = Callable[[list[Any] | Exception], None]


class Job:
    """Rows of one request: `done` gets one result a row, or what went wrong, once. Rows may be answered by several threads."""

    def __init__(self, work: str, count: int, done: Done) -> None:
        self.work, self._done = work, done
        self._results: list[Any] = [None] * count
        self._left = count
        self._lock = threading.Lock()
        self.failed = False

    def put(self, place: int, result: Any) -> None:
        """The result of a row; the last one completes the job."""
        with self._lock:
            self._results[place] = result
            self._left -= 1
            complete = not self._left and not self.failed
        if complete:
            self._done(self._results)

    def fail(self, error: Exception) -> None:
        with self._lock:
            first, self.failed = not self.failed, True
        if first:
            self._done(error)


class Row(NamedTuple):
    """One row of a job."""

    job: Job
    place: int
    given: Any
    tokens: Texts | None
    """Where they are known."""
    length: int
    """Tokens that the model reads; 0 where they are not known."""


def take_batch(waiting: list[Row], most_tokens: int = BATCH_TOKENS) -> list[Row]:
    """The next batch of `waiting`, which are in the order they came and are not empty; they are taken out of it."""
    oldest = waiting[0]
    alike = [row for row in waiting if row.job.work == oldest.job.work]
    alike.sort(key=lambda row: abs(row.length - oldest.length))  # stable: of two as like, the older
    batch, longest = [oldest], oldest.length
    for row in alike:
        if row is oldest:
            continue
        longest = max(longest, row.length)
        if len(batch) == ROWS or (len(batch) + 1) * longest > most_tokens:
            break
        batch.append(row)
    taken = {id(row) for row in batch}
    waiting[:] = [row for row in waiting if id(row) not in taken]
    return batch

"""What continuous batching needs of a model: open a sequence, feed tokens to many, close it.

Two cores do it: native.py (kernel.cpp, paged keys and values, all rows in one call) and plain.py (any model, one sequence
after the other). In both, what a sequence gives does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Stream(Protocol):
    """An open sequence."""

    tokens: list[int]
    """All that were given to it."""
    num_read: int
    """How many of them the model has read."""


class Feed(NamedTuple):
    """Tokens for one sequence: the next `num` of those that it has not read."""

    stream: Stream
    num: int
    wanted: bool
    """Logits behind the last of them are asked for."""


class Core(Protocol):
    """A model opened for generation."""

    vocab_size: int
    context: int
    """Tokens of a sequence at most."""
    max_rows: int
    """Tokens of a step at most."""
    whole_prompts: bool
    """A prompt is to be read in one piece, for in several its bits would differ; `max_rows` then counts it as one."""
    kind: str
    """For people: what runs the model."""

    def open(self, tokens: Sequence[int], total: int) -> Stream | None:
        """A sequence that begins with `tokens` and may grow to `total`; None: no room now."""

    def fits(self, total: int) -> bool:
        """Whether there is room for `total` tokens when nothing else runs."""

    def step(self, feeds: Sequence[Feed]) -> np.ndarray:
        """Logits (wanted, V) fp32, in the order of `feeds`; valid until the next step."""

    def close(self, stream: Stream) -> None: ...

    def room(self) -> tuple[int, int]:
        """Tokens that there is room for, and of these how many are free."""

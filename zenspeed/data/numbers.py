"""Hashes of documents, of which there may be hundreds of millions, counted and compared a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 1 << 20  # numbers taken at once
_PART = 1 << 22  # numbers sorted at once

Blocks = Callable[[], Iterator[np.ndarray]]
"""Gives (n,) uint64 arrays, the same ones each time it is called."""


def slices(total: int) -> Iterator[slice]:
    """[0, total) in pieces small enough to be copied."""
    return (slice(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK))


def num_distinct(hashes: Blocks) -> int:
    """How many different ones there are, a few million sorted at a time."""
    return sum(len(np.unique(part)) for part in _parts(hashes, _num_parts(hashes)))


def num_common(hashes: Blocks, others: Blocks) -> int:
    """How many of `hashes` are among `others`."""
    count = max(_num_parts(hashes), _num_parts(others))
    return sum(int(np.isin(a, b).sum()) for a, b in zip(_parts(hashes, count), _parts(others, count), strict=True))


def _num_parts(hashes: Blocks) -> int:
    return -(-sum(len(block) for block in hashes()) // _PART) or 1


def _parts(hashes: Blocks, count: int) -> Iterator[np.ndarray]:
    """All of them in `count` arrays, equal ones in the same."""
    for part in range(count):
        yield np.concatenate([np.empty(0, np.uint64), *(block[block % np.uint64(count) == part] for block in hashes())])

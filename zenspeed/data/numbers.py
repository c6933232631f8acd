"""Numbers of documents or rows, of which there may be hundreds of millions: on disk, and compared a part at a time."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_BLOCK = 1 << 20  # numbers taken at once
_PART = 1 << 22  # numbers sorted at once

Blocks = Callable[[], Iterator[np.ndarray]]
"""Gives (n,) uint64 arrays, the same ones each time it is called."""


class NumbersOnDisk:
    """A list of 8-byte numbers in a file that has no name and goes with them: the system may take their memory back.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, dtype: type[np.generic], folder: Path) -> None:
        self._dtype, self._file = np.dtype(dtype), tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this
        self._new = array("Q" if self._dtype.kind == "u" else "q")
        assert self._dtype.itemsize == 8

    def append(self, number: int) -> None:
        self._new.append(number)
        if len(self._new) == _BLOCK:
            self._flush()

    def finish(self) -> np.ndarray:
        """(n,) memory map of all of them; nothing can be appended after."""
        self._flush()
        self._file.flush()
        if not self._file.tell():
            return np.empty(0, self._dtype)
        return np.memmap(self._file, self._dtype, "r").view(np.ndarray)

    def _flush(self) -> None:
        self._new.tofile(self._file)
        del self._new[:]


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

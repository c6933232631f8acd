"""Numbers and texts of which there may be more than memory holds, in files that have no name and go with the process."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_BLOCK = 1 << 20  # numbers in memory before they are written
_READ_BYTES = 1 << 22


class NumbersOnDisk:
    """A list of 8-byte numbers; the system may take their memory back whenever it likes.

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


class TextsOnDisk:
    """A list of texts in UTF-8: written one after another, then read in order or anywhere.

    Raises:
        OSError: as above.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=_READ_BYTES)  # noqa: SIM115 - lives as long as this
        self._new_ends = NumbersOnDisk(np.int64, folder)
        self._ends: np.ndarray | None = None
        self._bytes = 0

    def append(self, text: str) -> None:
        self._bytes += self._file.write(text.encode())
        self._new_ends.append(self._bytes)

    def finish(self) -> None:
        """Nothing can be appended after, and nothing read before."""
        self._file.flush()
        self._ends = self._new_ends.finish()

    def __len__(self) -> int:
        assert self._ends is not None
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        assert self._ends is not None
        start = int(self._ends[index - 1]) if index else 0
        return os.pread(self._file.fileno(), int(self._ends[index]) - start, start).decode()

    def __iter__(self) -> Iterator[str]:
        assert self._ends is not None
        start, first, block = 0, 0, b""
        for end in self._ends:
            if end > first + len(block):
                first, block = start, os.pread(self._file.fileno(), max(_READ_BYTES, int(end) - start), start)
            yield block[start - first : int(end) - first].decode()
            start = int(end)

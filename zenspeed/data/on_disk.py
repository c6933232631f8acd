"""Numbers, texts and rows of which there may be more than memory holds, in files that have no name and go with the process."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.reading import Row

HELD_CHARACTERS = 100_000_000
"""Text up to this is kept in memory."""

_BLOCK = 1 << 20  # numbers in memory before they are written
_READ_BYTES = 1 << 22


class NumbersOnDisk:
    """A list of numbers; the system may take their memory back whenever it likes.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, dtype: np.typing.DTypeLike, folder: Path) -> None:
        self._dtype, self._file = np.dtype(dtype), tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this
        self._new = array(self._dtype.char.replace("l", "q").replace("L", "Q"))

    def extend(self, numbers: np.ndarray) -> None:
        self._flush()
        self._file.write(np.ascontiguousarray(numbers, self._dtype).data)

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


class RowsOnDisk(Sequence[Row]):
    """A list of rows as JSON. A value that JSON has no form for (a date, bytes) comes back as its text.

    `RowsOnDisk(folder)` is empty; `append` and `finish` fill it; `take` gives some of the same rows.
    """

    def __init__(self, folder: Path, texts: TextsOnDisk | None = None, places: np.ndarray | None = None) -> None:
        self.folder, self._texts, self._places = folder, texts or TextsOnDisk(folder), places

    def append(self, row: Row) -> None:
        self._texts.append(json.dumps(row, ensure_ascii=True, default=str))

    def finish(self) -> None:
        self._texts.finish()

    def take(self, places: np.ndarray) -> RowsOnDisk:
        """The rows at `places`, (n,) int64."""
        return RowsOnDisk(self.folder, self._texts, places if self._places is None else self._places[places])

    def __len__(self) -> int:
        return len(self._texts) if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> RowsOnDisk: ...
    def __getitem__(self, index: int | slice) -> Row | RowsOnDisk:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        row: Row = json.loads(self._texts[place if self._places is None else int(self._places[place])])
        return row

    def __iter__(self) -> Iterator[Row]:
        if self._places is None:
            yield from map(json.loads, self._texts)
        else:
            yield from (self[i] for i in range(len(self)))


def kept_rows(rows: Iterable[Row], folder: Path) -> Sequence[Row]:
    """All of `rows`: a list, or of much text on disk in `folder`, which is made if it is not there.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    held: list[Row] = []
    characters = 0
    rows = iter(rows)
    for row in rows:
        held.append(row)
        characters += sum(len(value) if isinstance(value, str) else 20 for value in row.values())
        if characters > HELD_CHARACTERS:
            break
    else:
        return held
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = RowsOnDisk(folder)
        for row in itertools.chain(held, rows):
            stored.append(row)
        stored.finish()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}; give another folder: data.cache") from None
    return stored


def some_rows(rows: Sequence[Row], places: np.ndarray) -> Sequence[Row]:
    """The rows at `places`, kept where `rows` are."""
    return rows.take(places) if isinstance(rows, RowsOnDisk) else [rows[i] for i in places]

"""Texts seen before, left out while they stream by, in bounded memory.

`exact` keeps eight bytes a text. `near` keeps a sketch (see duplicates.py) of the last two million texts that stayed, and for
each band of it the last text that had those values: 320 MB at most. A text is near one of the candidates so found if 80 % of
their sketches agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from zenspeed.data.duplicates import NEAR, sketch, text_hash

_BUFFER = 1 << 20  # hashes in a Python set before they are sorted into the array
_LARGEST = 1 << 24  # hashes in an array
_CHUNK_TEXTS = 512
_KEPT = 1 << 21
_BAND_VALUES = 4
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Hashes:
    """A set of 64-bit numbers at 8 bytes each, and up to a million more in a Python set."""

    def __init__(self) -> None:
        self._sorted = [np.empty(0, np.uint64)]  # several, so that adding to one never copies all
        self._new: set[int] = set()

    def add(self, value: int) -> bool:
        """Whether it was not in before."""
        if value in self._new or any(_holds(numbers, np.uint64(value)) for numbers in self._sorted):
            return False
        self._new.add(value)
        if len(self._new) == _BUFFER:
            if len(self._sorted[-1]) >= _LARGEST:
                self._sorted.append(np.empty(0, np.uint64))
            self._sorted[-1] = np.union1d(self._sorted[-1], np.fromiter(self._new, np.uint64, len(self._new)))
            self._new.clear()
        return True


def _holds(numbers: np.ndarray, value: np.uint64) -> bool:
    at = int(np.searchsorted(numbers, value))
    return at < len(numbers) and bool(numbers[at] == value)


class _NearIndex:
    def __init__(self, kept: int = _KEPT) -> None:
        self._kept, self._next = kept, 0
        self._values: np.ndarray | None = None
        self._heads: np.ndarray | None = None  # (bands, kept): 1 + place of the last text with these values; 0: none

    def add(self, values: np.ndarray) -> bool:
        """Whether no text like the one of this sketch, (values,) uint32, is known; it is now."""
        bands = len(values) // _BAND_VALUES
        if self._values is None:
            self._values = np.zeros((self._kept, len(values)), np.uint32)
            self._heads = np.zeros((bands, self._kept), np.int32)
        assert self._heads is not None
        key = np.zeros(bands, np.uint64)
        for column in values.reshape(bands, _BAND_VALUES).T:
            key = (key ^ column.astype(np.uint64)) * _MIX
            key ^= key >> np.uint64(29)
        slot, band = (key % np.uint64(self._kept)).astype(np.int64), np.arange(bands)
        candidates = self._heads[band, slot]
        candidates = candidates[candidates > 0] - 1
        if len(candidates) and (self._values[candidates] == values).mean(axis=1).max() >= NEAR:
            return False
        place = self._next % self._kept
        self._values[place] = values
        self._heads[band, slot] = place + 1
        self._next += 1
        return True


class Distinct:
    """Lets the first of equal or nearly equal texts pass."""

    def __init__(self, kind: Literal["exact", "near"]) -> None:
        self.kind = kind
        self.dropped = 0
        self._exact = Hashes()
        self._near = _NearIndex()

    def __call__(self, texts: Iterable[str]) -> Iterator[str]:
        return (text for _, text in self.numbered(texts))

    def numbered(self, texts: Iterable[str]) -> Iterator[tuple[int, str]]:
        """Those that pass, each with its place among `texts`."""
        chunk: list[tuple[int, str]] = []
        for number, text in enumerate(texts):
            if not self._exact.add(text_hash(text)):
                self.dropped += 1
            elif self.kind == "exact":
                yield number, text
            else:
                chunk.append((number, text))
                if len(chunk) == _CHUNK_TEXTS:
                    yield from self._first(chunk)
                    chunk = []
        yield from self._first(chunk)

    def _first(self, numbered: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        sketches = sketch([text for _, text in numbered])
        for one, values, long in zip(numbered, sketches.values, sketches.long, strict=True):
            if not long or self._near.add(values):
                yield one
            else:
                self.dropped += 1

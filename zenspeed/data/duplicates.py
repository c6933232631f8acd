"""Which texts are the same, or nearly: within one set, and between a training set and a test set.

Exact means equal after normalisation (compatibility forms, case, everything but letters and digits dropped). Near means
that the sets of character 4-grams are alike: their Jaccard similarity, estimated by MinHash (Broder 1997) of 32 values, is at
least 0.8. Candidates come from 8 bands of 4 values, so a pair of similarity 0.8 is met with probability 0.985, one of 0.9 with
0.9999. All of it runs over whole chunks of texts as arrays: a million short texts take seconds, at 140 bytes a text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.text.normalize import replace_surrogates

NEAR = 0.8
"""Jaccard similarity from which two texts are near duplicates."""
SHORTEST = 16
"""Normalised texts of fewer characters are compared exactly only: a letter more makes little of them alike."""

_GRAM = 4
_VALUES, _BANDS = 32, 8
_CHUNK_TEXTS = 20_000
_COMPARED_CHUNKS = 25  # whose sketches are held at once, 140 bytes a text
_HASHED_CHARACTERS = 4_000_000  # at once, 8 bytes each and as many for every value
_NOT_LETTERS = re.compile(r"[\W_]+")
_EXAMPLES = 10


def normalised(text: str) -> str:
    """What of a text counts when it is compared; a text without letters is compared as it is."""
    kept = _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text).casefold())
    return kept or text.strip()


def text_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(replace_surrogates(text).encode(), digest_size=8).digest(), "little")


class Sketches(NamedTuple):
    """What is kept of each text to compare it."""

    exact: np.ndarray
    """(texts,) uint64, of the normalised text."""
    values: np.ndarray
    """(texts, 32) uint32: MinHash of its 4-grams."""
    long: np.ndarray
    """(texts,) bool: long enough to be nearly equal to another."""

    def __len__(self) -> int:
        return len(self.exact)


def sketch(texts: Sequence[str]) -> Sketches:
    """The sketches of some texts."""
    kept = [replace_surrogates(normalised(text)) for text in texts]
    exact = np.array([text_hash(text) for text in kept], dtype=np.uint64)
    lengths = np.array([len(text) for text in kept], dtype=np.int64)
    values = np.zeros((len(kept), _VALUES), dtype=np.uint32)
    for first, last in _runs(lengths):
        rows = np.flatnonzero(lengths[first:last] >= SHORTEST) + first
        if len(rows):
            values[rows] = _min_hashes([kept[i] for i in rows])
    return Sketches(exact, values, lengths >= SHORTEST)


def join(parts: Sequence[Sketches]) -> Sketches:
    """The sketches of several chunks as one."""
    empty = sketch([])
    return Sketches(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def sketch_all(texts: Iterable[str]) -> Sketches:
    """The sketches of any number of texts; only a chunk of them is held."""
    return join([sketch(chunk) for chunk in chunks(texts, _CHUNK_TEXTS)])


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` items, the last one shorter."""
    out: list[str] = []
    for item in items:
        out.append(item)
        if len(out) == size:
            yield out
            out = []
    if out:
        yield out


def same_as_earlier(exact: np.ndarray) -> np.ndarray:
    """(n,) int64: the first place with the same hash; its own place where it is the first."""
    _, first, inverse = np.unique(exact, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def near_earlier(sketches: Sketches) -> np.ndarray:
    """(n,) int64: for each text an earlier one that is nearly the same, or -1. Exact copies are left out on both sides."""
    first = same_as_earlier(sketches.exact)
    rows = np.flatnonzero((first == np.arange(len(first))) & sketches.long)
    partner = np.full(len(first), -1, dtype=np.int64)
    values = sketches.values[rows]
    width = _VALUES // _BANDS
    for band in range(_BANDS):
        key = _mix(values[:, band * width : (band + 1) * width])
        order = np.argsort(key, kind="stable")  # within a band's group the earlier texts come first
        starts = np.concatenate([[True], key[order][1:] != key[order][:-1]])[: len(order)]
        group_first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        for other in (group_first, before):
            likely = (other != order) & ~(starts & (other == before)) & (partner[rows[order]] < 0)
            a, b = order[likely], other[likely]
            alike = (values[a] == values[b]).mean(axis=1) >= NEAR
            partner[rows[a[alike]]] = rows[b[alike]]
    return partner


class Leak(NamedTuple):
    """A test row that is in the training set, by row number from 1."""

    test_row: int
    train_row: int
    kind: str
    text: str


class Leakage(NamedTuple):
    """Test rows whose text is in the training set as well."""

    test_rows: int
    exact: int
    near: int
    examples: list[Leak]

    @property
    def share(self) -> float:
        """Of all test rows, in [0, 1]."""
        return (self.exact + self.near) / max(self.test_rows, 1)

    def __str__(self) -> str:
        first = "".join(f"; test row {e.test_row} is train row {e.train_row}: {e.text[:60]!r}" for e in self.examples[:1])
        return (
            f"{self.exact:,} of {self.test_rows:,} test rows are in the training set, {self.near:,} more nearly "
            f"({self.share:.1%}){first}"
        )


def check_leakage(train_rows: Iterable[Mapping[str, object]], test_rows: Iterable[Mapping[str, object]], text: str) -> Leakage:
    """Test rows that the training rows give away. Blank texts are no leaks.

    Args:
        text: the column of the text.

    Raises:
        InputError: a row has no such column.
    """
    kept: list[str] = []

    def seen(texts: Iterator[str]) -> Iterator[str]:
        for one in texts:
            kept.append(one[:200])
            yield one

    test = sketch_all(seen(column(test_rows, text, "test")))
    sketched = map(sketch, chunks(column(train_rows, text, "train"), _CHUNK_TEXTS))
    return _leakage(_joined(sketched), test, kept)


def _joined(sketched: Iterator[Sketches]) -> Iterator[Sketches]:
    while parts := list(islice(sketched, _COMPARED_CHUNKS)):
        yield join(parts)


def leakage(train: Sketches, test: Sketches, test_texts: Sequence[str]) -> Leakage:
    """The same of sketches; `test_texts` (or their beginnings) are quoted in the examples."""
    return _leakage([train], test, test_texts)


def _leakage(train: Iterable[Sketches], test: Sketches, test_texts: Sequence[str]) -> Leakage:
    """`train`: part by part, so that only one need be held."""
    blank = np.array([not text.strip() for text in test_texts], dtype=bool)
    exact, near = (np.full(len(test), -1, dtype=np.int64) for _ in range(2))
    before = 0
    for part in train:
        for partner, found in ((exact, _exact_between(part, test)), (near, near_between(part, test))):
            new = (partner < 0) & (found >= 0)
            partner[new] = before + found[new]
        before += len(part)
    is_exact = (exact >= 0) & ~blank
    is_near = (near >= 0) & ~is_exact & ~blank
    partner = np.where(is_exact, exact, near)
    examples = [
        Leak(int(i) + 1, int(partner[i]) + 1, "exact" if is_exact[i] else "near", test_texts[i])
        for i in np.flatnonzero(is_exact | is_near)[:_EXAMPLES]
    ]
    return Leakage(len(test), int(is_exact.sum()), int(is_near.sum()), examples)


def _exact_between(train: Sketches, test: Sketches) -> np.ndarray:
    """(test texts,) int64: the first training text that is the same, or -1."""
    if not len(train):
        return np.full(len(test), -1, dtype=np.int64)
    order = np.argsort(train.exact, kind="stable")
    found = order[np.minimum(np.searchsorted(train.exact[order], test.exact), len(train) - 1)]
    return np.where(train.exact[found] == test.exact, found, -1)


def near_between(train: Sketches, test: Sketches) -> np.ndarray:
    """(test texts,) int64: a training text that is nearly the same, or -1."""
    partner = np.full(len(test), -1, dtype=np.int64)
    width = _VALUES // _BANDS
    train_rows, test_rows = np.flatnonzero(train.long), np.flatnonzero(test.long)
    if not len(train_rows) or not len(test_rows):
        return partner
    for band in range(_BANDS):
        part = slice(band * width, (band + 1) * width)
        key = _mix(train.values[train_rows, part])
        order = np.argsort(key, kind="stable")
        wanted = _mix(test.values[test_rows, part])
        left, right = (np.searchsorted(key[order], wanted, side=side) for side in ("left", "right"))
        for other in (left, right - 1):  # the first and the last of a group
            likely = (right > left) & (partner[test_rows] < 0)
            a, b = test_rows[likely], train_rows[order[other[likely]]]
            alike = (test.values[a] == train.values[b]).mean(axis=1) >= NEAR
            partner[a[alike]] = b[alike]
    return partner


def column(rows: Iterable[Mapping[str, object]], name: str, what: str) -> Iterator[str]:
    """The texts of a column.

    Raises:
        InputError: a row does not have it.
    """
    for number, row in enumerate(rows, 1):
        if name not in row:
            raise InputError(f"{what}: row {number} has no column {name!r}; its columns: {', '.join(map(str, row))}")
        value = row[name]
        yield value if isinstance(value, str) else "" if value is None else str(value)


# ---- MinHash over arrays


def _runs(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of texts of about _HASHED_CHARACTERS together."""
    start = total = 0
    for i, length in enumerate(lengths.tolist()):
        if total + length > _HASHED_CHARACTERS and i > start:
            yield start, i
            start, total = i, 0
        total += length
    if start < len(lengths):
        yield start, len(lengths)


def _min_hashes(texts: Sequence[str]) -> np.ndarray:
    """(texts, 32) uint32: for each of 32 hash functions the least value over the 4-grams of each text."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    gram = np.zeros(len(points) - _GRAM + 1, dtype=np.uint64)
    for i in range(_GRAM):
        gram = gram * np.uint64(0x9E3779B97F4A7C15) + points[i : len(points) - _GRAM + 1 + i]
    gram ^= gram >> np.uint64(29)
    # Grams that reach into the next text are no text's: they get the least chance to be a minimum.
    within = np.ones(len(points), dtype=bool)
    within[(starts + lengths)[:, None] - np.arange(1, _GRAM)] = False
    inside = within[: len(gram)]
    base = ((gram * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(np.uint32)
    rng = np.random.default_rng(20_240_607)
    multipliers = rng.integers(1, 2**32, _VALUES, dtype=np.uint32) | np.uint32(1)
    offsets = rng.integers(0, 2**32, _VALUES, dtype=np.uint32)
    out = np.empty((len(texts), _VALUES), dtype=np.uint32)
    largest = np.uint32(0xFFFFFFFF)
    for k in range(_VALUES):
        mixed = (base ^ offsets[k]) * multipliers[k]
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x2C1B3C6D)
        mixed[~inside] = largest
        out[:, k] = np.minimum.reduceat(mixed, starts)
    return out


def _mix(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 of (n, width) uint32."""
    key = np.zeros(len(values), dtype=np.uint64)
    for i in range(values.shape[1]):
        key = (key ^ values[:, i]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(31)
    return key

"""Rows into parts, and into folds: at random by the text, stratified by label, whole groups, or by time.

Everything is a function of the rows and the seed. No row is in two parts, and equal keys (texts, groups) are never on two
sides where a key decides. A row's draw is a hash of its key and the seed, so it does not hang on the order of the rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.on_disk import some_rows
from zenspeed.data.reading import Row, no_column, value_of

Kind = Literal["random", "stratified", "grouped", "time"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    kind: Kind = "random"
    """`random` by the text; `stratified`: each label in equal shares; `grouped`: equal values of `by` together; `time`: the
    latest by `by` are the test part, those before them the validation part."""
    text: str = "text"
    """Column of the text: equal texts come to one side (random, and stratified within a label)."""
    by: str | None = None
    """Column of the label (stratified), the group or the time; numbers, or text that sorts by time such as ISO 8601."""
    validation: float = 0.1
    test: float = 0.1
    """Shares of the rows; 0: no such part."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise InputError(f"split: shares {self.validation} and {self.test}; give 0 ≤ share < 1, together below 1")
        if self.kind != "random" and self.by is None:
            raise InputError(f"split: {self.kind} needs `by`, the column of the label, group or time")


class Split(NamedTuple):
    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]


def split_rows(rows: Sequence[Row], options: SplitOptions = SplitOptions()) -> Split:
    """Every row in one of three parts, each in the order of `rows`, kept where `rows` are.

    Raises:
        InputError: a column is missing, times of unlike type, or a part that was asked for would be empty.
    """
    side = _by_time(rows, options) if options.kind == "time" else _by_key(rows, options)
    parts = Split(*(some_rows(rows, np.flatnonzero(side == n)) for n in range(3)))
    shares = (1.0, options.validation, options.test)
    for name, part, share in zip(Split._fields, parts, shares, strict=True):
        if share and not part:
            raise InputError(f"split: the {name} part of {len(rows)} rows would be empty; give more rows or another share")
    return parts


def _by_key(rows: Sequence[Row], options: SplitOptions) -> np.ndarray:
    """(rows,) 0 train, 1 validation, 2 test: within each stratum, keys by their draw until a part has its share of the rows."""
    key = options.by if options.kind == "grouped" else options.text
    assert key is not None
    draws = np.fromiter((draw(repr(value), options.seed) for value in _column(rows, key)), np.uint64, len(rows))
    _, first, group, sizes = np.unique(draws, return_index=True, return_inverse=True, return_counts=True)
    strata = np.zeros(len(rows), np.int64)
    if options.kind == "stratified" and options.by:
        strata = _codes(repr(value) for value in _column(rows, options.by))
    stratum = strata[first]  # of each group: a text with two labels counts for its first
    side = np.empty(len(sizes), np.int8)
    for code in np.unique(stratum):
        members = np.flatnonzero(stratum == code)  # by rising draw
        side[members] = _filled(sizes[members], options)
    return side[group.reshape(-1)]


def _filled(sizes: np.ndarray, options: SplitOptions) -> np.ndarray:
    """The part of each group of `sizes` rows: test, then validation, while they stay nearest to their shares."""
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()  # a group belongs where its middle falls
    return np.where(middles < options.test, 2, np.where(middles < options.test + options.validation, 1, 0))


def _by_time(rows: Sequence[Row], options: SplitOptions) -> np.ndarray:
    """As _by_key: no row of a part is earlier than one of the part before it; rows of one time are together."""
    assert options.by is not None
    times = [_number_or_text(value) for value in _column(rows, options.by)]
    if len({isinstance(time, str) for time in times}) > 1:
        raise InputError(f"split: column {options.by!r} holds numbers and text; times must be all of one kind")
    _, inverse, counts = np.unique(np.array(times), return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / len(rows)
    part = np.where(middles >= 1 - options.test, 2, np.where(middles >= 1 - options.test - options.validation, 1, 0))
    return part[inverse]


def _number_or_text(value: object) -> float | str:
    if isinstance(value, int | float):
        return float(value)
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    try:
        return float(text)
    except ValueError:
        return text


def _column(rows: Iterable[Row], column: str) -> Iterator[object]:
    for number, row in enumerate(rows, 1):
        there, value = value_of(row, column)
        if not there:
            raise InputError(no_column(f"split: row {number}", column, row, key="the column"))
        yield value


def draw(key: str, seed: int) -> int:
    """64 bits from a key and a seed."""
    data = f"{seed}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"zenspeed-rows").digest(), "little")


class Fold(NamedTuple):
    """Places in the sequence of rows, rising, int64."""

    train: np.ndarray
    test: np.ndarray


def folds(
    labels: Sequence[Hashable] | None,
    groups: Sequence[Hashable] | None = None,
    k: int = 5,
    repeats: int = 1,
    seed: int = 1,
    *,
    rows: int | None = None,
) -> list[Fold]:
    """`repeats` times `k` folds; in each repeat every row is tested once.

    With `labels` each fold has each label in equal shares; with `groups` a group is tested as a whole; with both, groups stay
    whole and the labels are as even as that allows (largest groups first, each to the fold whose counts it evens most).
    `rows`: their number, if there are neither.

    Raises:
        InputError: fewer rows, or groups, than folds.
    """
    n = len(labels) if labels is not None else len(groups) if groups is not None else rows
    if n is None:
        raise InputError("folds: give labels, groups or the number of rows")
    units = len(set(groups)) if groups is not None else n
    if k < 2 or units < k:
        raise InputError(
            f"folds: {units} {'groups' if groups is not None else 'rows'} do not make {k} folds; give 2 ≤ k ≤ {units}"
        )
    if repeats < 1:
        raise InputError(f"folds: {repeats} repeats; give 1 or more")
    codes = _codes(labels) if labels is not None else np.zeros(n, np.int64)
    made = []
    for repeat in range(repeats):
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[repeat, 0, 0, 0]))
        place = _stratified(codes, k, rng) if groups is None else _grouped(codes, _codes(groups), k, rng)
        made += [Fold(np.flatnonzero(place != f), np.flatnonzero(place == f)) for f in range(k)]
    return made


def _codes(values: Iterable[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _stratified(codes: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) the fold of each: rows shuffled within their label are dealt out in turn, going on from label to label."""
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    place = np.empty(len(codes), np.int64)
    place[order] = np.arange(len(codes)) % k
    return place


def _grouped(codes: np.ndarray, groups: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    counts = np.zeros((groups.max() + 1, codes.max() + 1))
    np.add.at(counts, (groups, codes), 1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    share = counts.sum(axis=0)
    held = np.zeros((k, counts.shape[1]))
    fold_of = np.empty(len(counts), np.int64)
    empty = k
    for done, group in enumerate(order):
        filled = held.sum(axis=1) > 0
        allowed = ~filled if len(order) - done <= empty else np.ones(k, bool)  # no fold may stay empty
        cost = (((held + counts[group]) / share) ** 2 - (held / share) ** 2).sum(axis=1)
        best = int(np.argmin(np.where(allowed, cost, np.inf)))
        empty -= not filled[best]
        held[best] += counts[group]
        fold_of[group] = best
    return fold_of[groups]

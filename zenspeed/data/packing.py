"""Several texts in one sequence: where each goes, and the tensors that come of it.

A batch of uneven texts, each padded to the longest, is mostly padding. Packed, a sequence holds as many texts as fit, numbered
in `documents`, and attention stays inside a text; the result for each text is the same as if it were alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PADDING = -1
"""Document number where there is no text."""
_SHORTEST_ROW = 128  # shorter rows make products too small to be fast


class Layout(NamedTuple):
    """Where each text lies: its sequence and its first place in it."""

    rows: np.ndarray
    columns: np.ndarray
    num_rows: int
    width: int


def pack(lengths: Sequence[int] | np.ndarray, longest: int, multiple: int = 8) -> Layout:
    """Places texts by best-fit decreasing: the longest first, each where the least room is left.

    Args:
        lengths: tokens of each text, none above `longest`.
        longest: tokens a sequence may have; it has fewer if no text needs more.
    """
    lengths = np.asarray(lengths)
    width = min(longest, max(_SHORTEST_ROW, int(lengths.max(initial=1))))
    width = min(longest, -(-width // multiple) * multiple)
    rows, columns = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    spaces: list[tuple[int, int]] = []  # (room left, row), sorted
    num_rows = 0
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        at = bisect.bisect_left(spaces, (length, -1))
        if at < len(spaces):
            room, row = spaces.pop(at)
        else:
            room, row, num_rows = width, num_rows, num_rows + 1
        rows[index], columns[index] = row, width - room
        bisect.insort(spaces, (room - length, row))
    # The narrowest width that holds what was placed, where everything fits one row.
    used = int((columns + lengths).max(initial=1))
    return Layout(rows, columns, max(1, num_rows), min(width, -(-used // multiple) * multiple))


def pack_pairs(
    sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, longest: int, multiple: int = 8
) -> tuple[Layout, Layout]:
    """Places pairs of texts, each target in the row of its source, where both have room: the longest pair first.

    Args:
        sources, targets: tokens of each, none above `longest`.
        longest: tokens that a row may have on either side.
    """
    lengths = np.stack([np.asarray(sources), np.asarray(targets)])  # (2, pairs)
    widths = np.minimum(longest, np.maximum(_SHORTEST_ROW, lengths.max(axis=1, initial=1)))
    rows, columns = np.zeros(lengths.shape[1], np.int64), np.zeros_like(lengths)
    room = np.empty((2, 0), np.int64)
    for index in np.argsort(-lengths.sum(axis=0), kind="stable"):
        fits = np.flatnonzero((room >= lengths[:, index : index + 1]).all(axis=0))
        if not len(fits):
            fits, room = np.array([room.shape[1]]), np.concatenate([room, widths[:, None]], axis=1)
        row = fits[0]
        rows[index], columns[:, index] = row, widths - room[:, row]
        room[:, row] -= lengths[:, index]
    used = (columns + lengths).max(axis=1, initial=1)
    most = np.minimum(widths, -(-used // multiple) * multiple)
    count = max(1, room.shape[1])
    return Layout(rows, columns[0], count, int(most[0])), Layout(rows, columns[1], count, int(most[1]))


def pack_in_one(lengths: Sequence[int] | np.ndarray, multiple: int = 8) -> Layout:
    """Places texts one behind the other in one sequence without padding between; attention finds them by their numbers.

    The sequence is a multiple of 8 long, since matrix products of other numbers of rows are up to 15 % slower.
    """
    lengths = np.asarray(lengths)
    ends = np.cumsum(lengths)
    width = -(-max(1, int(lengths.sum())) // multiple) * multiple
    return Layout(np.zeros(len(lengths), np.int64), ends - lengths, 1, width)


def pad(lengths: Sequence[int] | np.ndarray) -> Layout:
    """Every text in a sequence of its own, as wide as the longest."""
    lengths = np.asarray(lengths)
    n = len(lengths)
    return Layout(np.arange(n), np.zeros(n, np.int64), max(1, n), int(lengths.max(initial=1)))


def fill(layout: Layout, texts: Sequence[np.ndarray], empty: int) -> Tensor:
    """(rows, width) int64: `texts` in their places, `empty` elsewhere."""
    out = np.full((layout.num_rows, layout.width), empty, np.int64)
    for row, column, text in zip(layout.rows, layout.columns, texts, strict=True):
        out[row, column : column + len(text)] = text
    return torch.from_numpy(out)


def document_numbers(layout: Layout, lengths: Sequence[int] | np.ndarray) -> Tensor:
    """(rows, width) int64: the number of the text at each place, PADDING where there is none."""
    return fill(layout, [np.full(n, i) for i, n in enumerate(lengths)], PADDING)

"""What a table of rows is like, as far as a recipe depends on it: columns, sizes, script, lengths in tokens, labels."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError, nearest
from zenspeed.data.on_disk import kept_rows
from zenspeed.data.reading import columns_of
from zenspeed.data.report import suggest
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.source import documents
from zenspeed.recipe import Recipe
from zenspeed.tasks.data import Rows, read_split
from zenspeed.tasks.labels import labels_of
from zenspeed.text.tokenizer import Tokenizer

_SAMPLE_CHARACTERS = 2_000_000
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class Facts(NamedTuple):
    """Of the rows that a task reads."""

    rows: int
    tokens: float
    """Of all rows, as the tokenizer that would be trained cuts them; from a sample where there is much text."""
    lengths: np.ndarray
    """(sampled rows,) tokens of a row's sequence."""
    fits: int
    """The shortest usual length that cuts at most one row in a hundred."""
    characters: int
    han: float
    """Share of Chinese characters."""
    vocab_size: int
    """Of that tokenizer."""
    labels: int
    """Different values in the label's column; 0 where the task has none."""


def columns_in(source: str, options: RowOptions) -> list[str]:
    """Columns of the first row of `source`, those inside others as `a.b`."""
    first = next(iter(read_rows(source, options)))
    return columns_of(first)


def check_columns(wanted: dict[str, str], columns: Sequence[str], source: str) -> None:
    """`wanted`: option -> column. Raises InputError where a column is not there, with the option that names it."""
    for option, column in wanted.items():
        if column not in columns:
            there = ", ".join(columns)
            fix = nearest(column, columns, f"--{option} ") or f"; name the column: --{option} COLUMN"
            raise InputError(f"{source}: no column {column!r} for --{option}{fix} (columns: {there})")


def facts_of(recipe: Recipe, texts: Sequence[str], tokenizer_kind: str, joined: bool = True) -> Facts:
    """Reads the rows of `recipe.data.source` as training will, and cuts them by a tokenizer like the one it will train.

    Args:
        texts: columns of text; for language_model any.
        joined: the length of a row is that of all its texts, else that of the longest.

    Raises:
        InputError: the source cannot be read, or holds nothing.
    """
    source, label = recipe.data.source, recipe.task.label
    if recipe.task.kind == "language_model":
        found: Iterator[dict[str, Any]] = ({"text": text} for text in documents(recipe.data, source))
        rows: Rows = kept_rows(found, recipe.data.cache.expanduser())
        texts = ["text"]
    else:
        rows = read_split(recipe, source)
    if not rows:
        raise InputError(f"{source}: holds no text to learn from")
    characters = sum(len(str(row.get(column) or "")) for row in rows for column in texts)
    sample = list(_sample(rows, texts))
    whole = "".join(islice((text for row in sample for text in row), 5000))
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    flat = [text for row in sample for text in row]
    tokenizer = Tokenizer.train(tokenizer_kind, flat, special_tokens=special)
    cut = iter(tokenizer.encode_batch(flat))
    by_text = [[len(next(cut)) for _ in row] for row in sample]
    lengths = np.array([sum(row) if joined else max(row) for row in by_text])
    labels = 0
    if recipe.task.kind == "classification":
        labels = len(labels_of([sys.intern(str(row[label])) for row in rows], recipe.task.labels, label))
    han = len(_HAN.findall(whole)) / max(1, sum(not c.isspace() for c in whole))
    tokens = sum(map(sum, by_text)) / len(by_text) * len(rows)
    return Facts(len(rows), tokens, lengths, suggest(lengths), characters, han, tokenizer.vocab_size, labels)


def _sample(rows: Rows, texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts of rows taken evenly over the file, up to a number of characters."""
    total, step = 0, max(1, len(rows) // 50_000)
    for row in rows[::step]:
        found = [str(row.get(column) or "") for column in texts]
        yield found
        total += sum(map(len, found))
        if total > _SAMPLE_CHARACTERS:
            return

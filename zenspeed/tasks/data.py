"""Rows of a recipe's data in their splits, and the tokenizer: trained on the training rows alone, or that of the model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.config import InputError
from zenspeed.data.reading import ReadReport
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.source import PYTHON_DOCS, documents
from zenspeed.recipe import Recipe
from zenspeed.tasks.labels import labels_of
from zenspeed.text.tokenizer import Tokenizer

Rows = list[dict[str, Any]]


class RowData(NamedTuple):
    """Rows of a task, and what reads them."""

    train: Rows
    validation: Rows
    test: Rows | None
    tokenizer: Tokenizer
    labels: list[str]
    """Of a classification, from all rows that train or validate."""
    report: dict[str, Any]
    """Counts of each split, for the run's report."""

    def splits(self) -> Iterator[tuple[Rows, str]]:
        """(rows, name for people) of those there are."""
        yield self.train, "the training rows"
        yield self.validation, "the validation rows"
        if self.test is not None:
            yield self.test, "the test rows"


def open_rows(recipe: Recipe, progress: Callable[[str], None] | None) -> RowData:
    """Reads all splits and the tokenizer.

    Raises:
        InputError: a source cannot be read, a column is missing, or no row is left for a split.
    """
    start, say = time.perf_counter(), progress or (lambda message: None)
    rows, reading = _read(recipe, recipe.data.source)
    labels = []
    if recipe.task.kind == "classification":
        column = recipe.task.label
        labels = labels_of([str(row[column]) for row in rows], recipe.task.labels, column)
    if isinstance(recipe.data.validation, str):
        train, validation = rows, _read(recipe, recipe.data.validation)[0]
    else:
        train, validation = _hold_out(rows, recipe, recipe.data.validation)
    test = _read(recipe, recipe.data.test)[0] if recipe.data.test else None
    for split, name in ((train, "training"), (validation, "validation")):
        if not split:
            raise InputError(f"data.validation: {len(rows)} rows leave none for {name}; give another share, or more rows")
    tokenizer = _tokenizer(recipe, train)
    counts = {"train": len(train), "validation": len(validation)} | ({"test": len(test)} if test is not None else {})
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"data: {said} rows, vocabulary {tokenizer.vocab_size:,}, in {time.perf_counter() - start:.1f} s")
    if reading.bad_rows:
        say(f"data: {reading.bad_rows:,} rows could not be read, the first: {reading.first_bad[0]}")
    return RowData(train, validation, test, tokenizer, labels, {"rows": counts, "reading": reading.as_dict()})


def text_columns(recipe: Recipe) -> list[str]:
    """Columns of text that the task reads."""
    task = recipe.task
    return [task.text, *([task.text_pair] if task.text_pair else [])]


def read_split(recipe: Recipe, source: str) -> Rows:
    """The rows of `source` with the columns of the recipe's task."""
    return _read(recipe, source)[0]


def _read(recipe: Recipe, source: str) -> tuple[Rows, ReadReport]:
    task, report = recipe.task, ReadReport()
    if task.kind == "masked_lm" and (source == PYTHON_DOCS or _is_text(source)):
        return [{task.text: text} for text in documents(recipe.data, source)], report
    columns = [*text_columns(recipe)]
    if task.kind == "classification":
        columns.append(task.label)
    return list(read_rows(source, RowOptions(columns=tuple(columns)), report)), report


def _is_text(source: str) -> bool:
    """Plain text, which is cut into documents, and not a table of rows."""
    path = Path(source).expanduser()
    return path.suffix in (".txt", ".md", ".py", ".rst") or path.is_dir()


def _hold_out(rows: Rows, recipe: Recipe, share: float) -> tuple[Rows, Rows]:
    """The rows whose text has the lowest hashes are held out, of each label alike; equal texts are never on both sides."""
    column = recipe.task.text
    wanted = min(len(rows) - 1, max(1, round(share * len(rows))))
    stratum = (lambda row: str(row[recipe.task.label])) if recipe.task.kind == "classification" else (lambda row: "")
    by_stratum: dict[str, set[str]] = {}
    for row in rows:
        by_stratum.setdefault(stratum(row), set()).add(str(row[column]))
    held: set[str] = set()
    for texts in by_stratum.values():
        ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8", "replace")).digest())
        held |= set(ordered[: round(wanted * len(texts) / sum(map(len, by_stratum.values())))])
    train = [row for row in rows if str(row[column]) not in held]
    return train, [row for row in rows if str(row[column]) in held]


def _tokenizer(recipe: Recipe, train: Rows) -> Tokenizer:
    settings = recipe.tokenizer
    if settings.folder is not None:
        return Tokenizer.load(settings.folder)
    if recipe.model.huggingface is not None:
        return Tokenizer.load(Path(recipe.model.huggingface))
    texts = (str(row[column]) for row in train for column in text_columns(recipe))
    special = settings.special_tokens or ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    return Tokenizer.train(settings.kind, texts, settings.vocab_size, special_tokens=special)

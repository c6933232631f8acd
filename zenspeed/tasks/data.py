"""Rows of a recipe's data in their splits, and the tokenizer: trained on the training rows alone, or that of the model."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.distinct import Distinct, Hashes
from zenspeed.data.duplicates import check_leakage, text_hash
from zenspeed.data.files import PYTHON_DOCS
from zenspeed.data.on_disk import RowsOnDisk, kept_rows, some_rows
from zenspeed.data.reading import ReadReport
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.source import documents
from zenspeed.data.split import SplitOptions, split_rows
from zenspeed.recipe import Recipe, TaskConfig
from zenspeed.tasks.controls import control_names
from zenspeed.tasks.labels import labels_of
from zenspeed.text.chat import ROLES, Message, messages_of
from zenspeed.text.clean import Cleaner
from zenspeed.text.tokenizer import Tokenizer

Rows = Sequence[dict[str, Any]]
"""A list, or a table of much text on disk."""

_TOKENIZER_CHARACTERS = 100_000_000  # a sample of this size is enough to learn a vocabulary from


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
    data, reader = recipe.data, _Reader(recipe)
    rows = reader.read(data.source)
    labels = []
    if recipe.task.kind == "classification":
        column = recipe.task.label
        labels = labels_of([sys.intern(str(row[column])) for row in rows], recipe.task.labels, column)
    if isinstance(data.validation, str):
        train, validation = rows, reader.read(data.validation)
    else:
        train, validation = _hold_out(rows, recipe, data.validation)
    test = reader.read(data.test) if data.test else None
    _check_leakage(recipe, train, validation, test, say)
    tokenizer = _tokenizer(recipe, train)
    counts = {"train": len(train), "validation": len(validation)} | ({"test": len(test)} if test is not None else {})
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"data: {said} rows, vocabulary {tokenizer.vocab_size:,}, in {time.perf_counter() - start:.1f} s")
    if reader.report.bad_rows:
        say(f"data: {reader.report.bad_rows:,} rows could not be read, the first: {reader.report.first_bad[0]}")
    for step, count in reader.dropped().items():
        say(f"data: {count:,} rows left out by data.clean: {step}")
    report = {"rows": counts, "reading": reader.report.as_dict(), "left_out": reader.dropped()}
    return RowData(train, validation, test, tokenizer, labels, report)


def text_columns(recipe: Recipe) -> list[str]:
    """Columns of text that the task reads."""
    task = recipe.task
    if task.kind == "span_qa":
        return [task.question, task.context]
    return [task.text, *([task.text_pair] if task.text_pair else [])]


def needed_columns(recipe: Recipe) -> list[str]:
    """Columns that every row must have."""
    task = recipe.task
    if task.kind == "chat" and task.messages is not None:
        return [task.messages]
    return [*text_columns(recipe), *(task.control if task.kind == "seq2seq" else [])]


def answer_columns(recipe: Recipe) -> list[str]:
    """Columns of what the task is to say, which rows to be answered need not have."""
    task = recipe.task
    if task.kind == "chat" and task.messages is not None:
        return []
    scores = [task.score] if task.score else []
    return {
        "classification": [task.label], "span_qa": [task.answer], "similarity": scores, "seq2seq": [task.target],
        "chat": [task.target],
    }.get(task.kind, [])  # fmt: skip


def _keys(recipe: Recipe) -> dict[str, str]:
    """Column -> the key that names it."""
    task = recipe.task
    names: dict[str, tuple[str, ...]] = {
        "classification": ("text", "text_pair", "label"),
        "span_qa": ("question", "context", "answer"),
        "seq2seq": ("text", "target"),
        "chat": ("text", "target") if task.messages is None else ("messages",),
    }
    used = names.get(task.kind, ("text", "text_pair", "score"))
    columns = {str(column): f"task.{name}" for name in used if (column := getattr(task, name)) is not None}
    return dict.fromkeys(task.control, "task.control") | columns


def conversation(task: TaskConfig, row: dict[str, Any], place: str) -> list[Message]:
    """The messages of a row of a chat.

    Raises:
        InputError: they are none.
    """
    if task.messages is not None:
        if row.get(task.messages) is None:
            raise InputError(f"task.messages: {place} has no {task.messages!r}; its columns: {', '.join(map(str, row))}")
        return messages_of(row[task.messages], f"task.messages of {place}")
    if row.get(task.text) is None:
        raise InputError(f"task.text: {place} has no {task.text!r}; its columns: {', '.join(map(str, row))}")
    answer = row.get(task.target)
    asked = {"role": "user", "content": str(row[task.text])}
    return [asked] if answer is None else [asked, {"role": "assistant", "content": str(answer)}]


def read_split(recipe: Recipe, source: str, *, answers: bool = True) -> Rows:
    """The rows of `source` with the columns of the recipe's task, cleaned as its own. `answers`: they must hold the truth."""
    return _Reader(recipe, answers).read(source)


class _Reader:
    """Reads and cleans rows, and counts what is left out."""

    def __init__(self, recipe: Recipe, answers: bool = True) -> None:
        self._answers = answer_columns(recipe) if answers else []
        self._recipe, self.report, self._clean = recipe, ReadReport(), Cleaner(recipe.data.clean)
        self._repeated, self._keys = 0, _keys(recipe)

    def read(self, source: str) -> Rows:
        task, data = self._recipe.task, self._recipe.data
        folder = data.cache.expanduser()
        if task.kind in ("masked_lm", "span_corruption") and (source == PYTHON_DOCS or is_text(source)):
            return kept_rows(({task.text: text} for text in documents(data, source)), folder)  # cleaned there
        kept = kept_rows(self.each(source), folder)
        return kept if data.clean.duplicates == "keep" else self._distinct(kept)

    def each(self, source: str) -> Iterator[dict[str, Any]]:
        """Row by row, with those that repeat others; at least one."""
        data, kept = self._recipe.data, 0
        columns = [*needed_columns(self._recipe), *self._answers]
        options = RowOptions(
            columns=tuple(dict.fromkeys(columns)),
            keys=self._keys,
            on_bad_row=data.on_bad_row,
            encoding=data.encoding,
            line_column=text_columns(self._recipe)[0],
            split=data.split,
            endpoint=data.endpoint,
            fetch=data.fetch,
        )
        for row in read_rows(source, options, self.report):
            if self._cleaned(row):
                kept += 1
                yield row
        if not kept:
            raise InputError(self._nothing_left(source))

    def _nothing_left(self, source: str) -> str:
        left_out = self.dropped()
        if set(left_out) == {"length"} and self._recipe.data.clean.min_characters <= 1:
            column = text_columns(self._recipe)[0]
            return f"{source}: column {column!r} is blank in all rows; name the column of the text: {self._keys[column]}"
        by = ", ".join(f"{step} {count:,}" for step, count in left_out.items())
        return f"data.clean: leaves no row of {source} (left out by {by}); ask for less"

    def _cleaned(self, row: dict[str, Any]) -> bool:
        task = self._recipe.task
        if task.kind == "chat" and task.messages is not None:
            return self._cleaned_messages(row, task.messages)
        written = [task.target] if task.kind in ("seq2seq", "chat") and row.get(task.target) is not None else []
        for column in [*text_columns(self._recipe), *written]:
            text = self._clean("" if row[column] is None else str(row[column]))
            if text is None:
                return False
            row[column] = text
        return True

    def _cleaned_messages(self, row: dict[str, Any], column: str) -> bool:
        """What was asked becomes the row's text: duplicates and splits go by it."""
        messages = messages_of(row[column], f"task.messages: column {column!r}")
        cleaned = [self._clean(message["content"]) for message in messages]
        row[column] = [{**m, "content": text} for m, text in zip(messages, cleaned, strict=True)]
        row[self._recipe.task.text] = "\n".join(m["content"] for m in messages if m["role"] != "assistant")
        return None not in cleaned

    def _distinct(self, rows: Rows) -> Rows:
        """The first row of those with equal (or nearly equal) texts and the same label or controls."""
        task, kind = self._recipe.task, self._recipe.data.clean.duplicates
        assert kind != "keep"
        by_label: dict[str, array[int]] = {}
        apart = [task.label] if task.kind == "classification" else task.control
        for place, row in enumerate(rows):
            by_label.setdefault(repr([row.get(column) for column in apart]), array("q")).append(place)
        kept = array("q")
        for group in by_label.values():
            texts = (_whole_text(self._recipe, rows[place]) for place in group)
            kept.extend(group[number] for number, _ in Distinct(kind).numbered(texts))
        self._repeated += len(rows) - len(kept)
        return some_rows(rows, np.array(kept))

    def dropped(self) -> dict[str, int]:
        """Rows left out, by step."""
        return dict(self._clean.dropped) | ({"duplicates": self._repeated} if self._repeated else {})


def _check_leakage(recipe: Recipe, train: Rows, validation: Rows, test: Rows | None, say: Callable[[str], None]) -> None:
    data = recipe.data
    for rows, key in ((validation, "data.validation"), (test, "data.test")):
        if rows is None:
            continue
        seen = ({"text": _whole_text(recipe, row)} for row in train)
        found = check_leakage(seen, ({"text": _whole_text(recipe, row)} for row in rows), "text")
        if not found.exact + found.near:
            continue
        message = str(found).replace("test row", f"{key.removeprefix('data.')} row")
        if data.leakage == "refuse" and (key == "data.test" or isinstance(data.validation, str)):
            raise InputError(f"{key}: {message}; take them out of one side, or go on with data.leakage=allow")
        say(f"data: {message}")


def _whole_text(recipe: Recipe, row: dict[str, Any]) -> str:
    """All that the task reads of a row."""
    return "\n".join(str(row[column]) for column in text_columns(recipe))


def is_text(source: str) -> bool:
    """Plain text, which is cut into documents, and not a table of rows."""
    path = Path(source).expanduser()
    return path.suffix in (".txt", ".md", ".py", ".rst") or path.is_dir()


def _hold_out(rows: Rows, recipe: Recipe, share: float) -> tuple[Rows, Rows]:
    """(training, validation) rows; what is held out depends on the rows and not on the run's seed."""
    task, kind, by = recipe.task, recipe.data.hold_out, recipe.data.hold_out_by
    if kind == "auto":
        kind = "random"
        if task.kind == "classification":
            kind = "stratified"
        elif task.kind == "span_qa":  # a text is not asked about on both sides
            kind, by = "grouped", by or task.context
    if kind == "stratified":
        by = task.label
    if kind in ("grouped", "time") and by is None:
        raise InputError(f"data.hold_out: {kind} needs data.hold_out_by, the column of the {kind.removesuffix('ed')}")
    parts = split_rows(rows, SplitOptions(kind=kind, text=text_columns(recipe)[0], by=by, validation=share, test=0.0))
    return parts.train, parts.validation


def _tokenizer(recipe: Recipe, train: Rows) -> Tokenizer:
    settings = recipe.tokenizer
    if settings.folder is not None:
        return Tokenizer.load(settings.folder)
    if recipe.model.huggingface is not None:
        return Tokenizer.load(Path(recipe.model.huggingface))
    special = _special_tokens(recipe, train)
    if recipe.task.kind not in ("seq2seq", "chat", "span_corruption"):
        special = settings.special_tokens or special
    return Tokenizer.train(
        settings.kind, _sample(recipe, train), settings.vocab_size, or_fewer=settings.or_fewer, special_tokens=special
    )


def _sample(recipe: Recipe, train: Rows) -> Iterator[str]:
    """Different texts of the rows, each once: all, or of much text a part that does not hang on the rows' order."""
    share = 1.0
    if isinstance(train, RowsOnDisk):
        share = min(1.0, _TOKENIZER_CHARACTERS / max(1, sum(map(len, _texts(recipe, train)))))
    seen = Hashes()
    for text in _texts(recipe, train):
        hashed = text_hash(text)
        if (hashed & 0xFFFFFFFF) <= share * 0xFFFFFFFF and seen.add(hashed):
            yield text


SENTINEL = "<extra_id_{}>"
"""Name of the tokens that stand for a span that was left out, as T5 has them."""


def _special_tokens(recipe: Recipe, train: Rows) -> list[str]:
    """Those of a vocabulary that is trained for the task."""
    task = recipe.task
    if task.kind == "seq2seq":
        return ["[PAD]", *control_names(task, train), *recipe.tokenizer.special_tokens]
    if task.kind == "chat":
        return ["[PAD]", *ROLES, *recipe.tokenizer.special_tokens]
    if task.kind == "span_corruption":
        return ["[PAD]", *(SENTINEL.format(i) for i in range(100)), *recipe.tokenizer.special_tokens]
    return ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]


def _texts(recipe: Recipe, train: Rows) -> Iterator[str]:
    """All that is read and written."""
    task = recipe.task
    if task.kind == "chat":
        return (message["content"] for row in train for message in conversation(task, row, "a training row"))
    columns = [*text_columns(recipe), *([task.target] if task.kind == "seq2seq" else [])]
    return (str(row[column]) for row in train for column in columns)

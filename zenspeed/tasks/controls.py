"""What is asked of a text that is to be written, as tokens before its source: a language, a style, a length in words.

Lengths are rounded to steps of a tenth (1, 2, … 14, 16, 17, 19, 21, …), so that each is seen often enough to be learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from zenspeed.config import InputError
from zenspeed.evaluate.written import num_words
from zenspeed.recipe import TaskConfig
from zenspeed.text.tokenizer import Tokenizer

LENGTHS = sorted({round(1.1**power) for power in range(80)})
"""1 … 1,857 words."""


def control_name(column: str, value: str) -> str:
    return f"<|{column}:{value}|>"


def control_names(task: TaskConfig, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Every control of `rows`, which have targets, as special tokens of a vocabulary; all lengths up to the longest."""
    names: dict[str, None] = {}
    longest = 0
    for row in rows:
        for column in task.control:
            names[control_name(column, str(row.get(column)))] = None
        if task.length is not None:
            longest = max(longest, num_words(str(row[task.target])))
    lengths = LENGTHS[: LENGTHS.index(rounded(longest)) + 1] if longest else []
    return [*sorted(names), *(control_name("words", str(words)) for words in lengths)]


def rounded(words: int) -> int:
    """The nearest of LENGTHS."""
    return min(LENGTHS, key=lambda length: abs(length - words))


class Controls:
    """The controls of a task in the tokens of its tokenizer."""

    def __init__(self, task: TaskConfig, tokenizer: Tokenizer) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._known: dict[str, list[int]] = {}

    def tokens(self, row: dict[str, Any], place: str) -> np.ndarray:
        """(n,) tokens before the text of `row`.

        Raises:
            InputError: a control is missing, or was never seen in training.
        """
        task, out = self._task, []
        for column in task.control:
            if row.get(column) is None:
                raise InputError(f"task.control: {place} has no {column!r}; its columns: {', '.join(map(str, row))}")
            out += self._token(control_name(column, str(row[column])), column, place)
        if task.length is not None:
            words = self.words(row)
            if words is None:
                raise InputError(f"task.length: {place} has no {task.length!r}: the words that the text is to have, such as 12")
            out += self._token(control_name("words", str(rounded(words))), "words", place)
        return np.array(out, np.int64)

    def words(self, row: dict[str, Any]) -> int | None:
        """Words that are asked for: the row's own, else those of its target."""
        task = self._task
        if task.length is None:
            return None
        if (value := row.get(task.length)) is not None and str(value).strip():
            if not str(value).strip().isdigit() or int(str(value)) < 1:
                raise InputError(f"task.length: {value!r} in column {task.length!r} is no number of words; give 1 or more")
            return int(str(value))
        return None if row.get(task.target) is None else max(1, num_words(str(row[task.target])))

    def choices(self) -> dict[str, list[str]]:
        """The values of each control that were seen in training; not of the length, which may be any number of words."""
        return {column: [self._value(name, column) for name in self._others(column)] for column in self._task.control}

    @staticmethod
    def _value(name: str, column: str) -> str:
        return name.removeprefix(control_name(column, "")[: -len("|>")]).removesuffix("|>")

    def _token(self, name: str, column: str, place: str) -> list[int]:
        if name not in self._known:
            number = self._tokenizer.number(name)
            if number is None and (others := self._others(column)):
                if column != "words":
                    raise InputError(
                        f"task.control: {place} asks for {name}, which was not seen in training; known: {', '.join(others)}"
                    )
                number = self._tokenizer.number(others[-1])  # longer than any that was seen
            self._known[name] = self._tokenizer.encode(name) if number is None else [number]
        return self._known[name]

    def _others(self, column: str) -> list[str]:
        """Controls of `column` that the vocabulary has, lengths by their number."""
        begin = control_name(column, "")[: -len("|>")]
        found = [name for name in self._tokenizer.special_tokens() if name.startswith(begin)]
        return sorted(found, key=lambda name: (len(name), name))

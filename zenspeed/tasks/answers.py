"""Where answers stand in their texts: the forms that rows have them in, and the check that they stand there."""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple

from zenspeed.config import InputError
from zenspeed.recipe import TaskConfig


class Answer(NamedTuple):
    """`context[start : start + len(text)] == text`."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def answers_of(row: dict[str, Any], task: TaskConfig, place: str) -> list[Answer]:
    """The accepted answers of a row, the one to be learned first; none where the context does not hold it.

    An answer is a text, or SQuAD's {text: […], answer_start: […]}, or a list of {text, answer_start}. Without a start it is the
    first place where the text stands.

    Args:
        place: for people, such as `row 3 of the training rows`.

    Raises:
        InputError: an answer does not stand where it is said to; with the nearest place.
    """
    value, context = row.get(task.answer), str(row[task.context])
    if isinstance(value, dict):
        if not isinstance(value.get("text"), list | tuple):
            raise InputError(f"task.answer: {place} has {value!r}; give a text, or {{text: […], answer_start: […]}}")
        texts = list(value["text"])
        starts = list(value.get("answer_start") or [None] * len(texts))
        if len(starts) != len(texts):
            raise InputError(f"task.answer: {place} has {len(texts)} answers, but {len(starts)} values of answer_start")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list | tuple):
        pairs = [(x.get("text"), x.get("answer_start")) if isinstance(x, dict) else (x, None) for x in value]
    else:
        pairs = [(value, row.get(task.answer_start))]
    found = [(str(text), start) for text, start in pairs if text is not None and str(text).strip()]
    return [_at(text, start, context, place) for text, start in found]


def _at(text: str, start: object, context: str, place: str) -> Answer:
    if start is None or start == "":
        at = context.find(text)
        if at < 0:
            raise InputError(f"task.answer: {place}: {text!r} does not stand in the context; {_nearest(text, context, 0)}")
        return Answer(text, at)
    try:
        at = int(str(start))
    except ValueError:
        raise InputError(f"task.answer_start: {place} has {start!r}; give the place of the answer in characters") from None
    if at < 0 or context[at : at + len(text)] != text:
        there = repr(context[at : at + len(text)]) if 0 <= at < len(context) else f"nothing (it has {len(context)} characters)"
        raise InputError(
            f"task.answer_start: {place}: {text!r} is not at {at} of the context, there is {there}; "
            f"{_nearest(text, context, at)}"
        )
    return Answer(text, at)


def _nearest(text: str, context: str, start: int) -> str:
    """Where the text does stand, nearest to `start`; or what comes nearest to it."""
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if places:
        return f"the nearest place where it is: {min(places, key=lambda at: abs(at - start))}"
    other_case = context.lower().find(text.lower())
    if other_case >= 0:
        return f"nearest: {context[other_case : other_case + len(text)]!r} at {other_case}, in another case"
    match = difflib.SequenceMatcher(None, context, text, autojunk=False).find_longest_match()
    if match.size == 0:
        return "nothing of it is there"
    at = max(0, match.a - match.b)
    return f"nearest: {context[at : at + len(text)]!r} at {at}"

"""Parts of the rows that get figures of their own: by a column's values, ranges of a number, or a rule on the text."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.errors import InputError

TEXT_COLUMNS = ("text", "source", "question", "query", "prompt")
MOST_VALUES = 20
_MOST_TEXTS = 100
Row = dict[str, Any]


class Slice(NamedTuple):
    """One part: of which `name`, with which `value`, the places of its rows, rising."""

    name: str
    value: str
    rows: np.ndarray


def text_of(row: Row) -> str:
    """What the model read of a row: the first of TEXT_COLUMNS."""
    return next((str(row[column]) for column in TEXT_COLUMNS if column in row), "")


def slices_of(rows: Sequence[Row], rules: Sequence[str]) -> list[Slice]:
    """The parts that each rule makes.

    A rule is `column` (each value; a number with more than 20 values by its quartiles), `column:10,20` (ranges with these
    edges), or `column~regex` (whether it is found). `length`, `words`, `language`: of the text.

    Raises:
        InputError: there is no such column, or its values make too many parts.
    """
    return [part for rule in rules for part in _parts(rows, rule)]


def columns_of(rules: Sequence[str]) -> list[str]:
    """The columns that rules name, those of the text's own (length, words, language) among them."""
    return [re.split(r"[:~]", rule, maxsplit=1)[0] for rule in rules]


def _parts(rows: Sequence[Row], rule: str) -> Iterator[Slice]:
    name = columns_of([rule])[0]
    rest = rule[len(name) :]
    values = _values(rows, name)
    if rest.startswith("~"):
        try:
            pattern = re.compile(rest[1:])
        except re.error as error:
            raise InputError(f"--slice {rule}: {rest[1:]!r} is no regular expression: {error}") from None
        names = [f"has {rest[1:]}" if pattern.search(str(value)) else f"has no {rest[1:]}" for value in values]
        yield from _by_value(name, names, sorted(set(names)))
    elif rest:
        yield from _by_range(name, _numbers(values, rule), _edges(rest[1:], rule))
    else:
        yield from _by_column(name, values, rule)


def _by_column(name: str, values: list[Any], rule: str) -> Iterator[Slice]:
    texts = [str(value) for value in values]
    different = sorted(set(texts))
    if len(different) > MOST_VALUES and all(isinstance(v, int | float) or _number(v) is not None for v in values):
        numbers = _numbers(values, rule)
        yield from _by_range(name, numbers, sorted({float(q) for q in np.quantile(numbers, [0.25, 0.5, 0.75])}))
        return
    if len(different) > _MOST_TEXTS:
        raise InputError(
            f"--slice {rule}: {len(different):,} different values; give ranges ({name}:10,20) or a rule ({name}~word)"
        )
    yield from _by_value(name, texts, different)


def _by_value(name: str, values: Sequence[str], different: Sequence[str]) -> Iterator[Slice]:
    places: dict[str, list[int]] = {value: [] for value in different}
    for i, value in enumerate(values):
        places[value].append(i)
    for value, rows in places.items():
        yield Slice(name, value, np.array(rows, np.int64))


def _by_range(name: str, values: np.ndarray, edges: Sequence[float]) -> Iterator[Slice]:
    part = np.searchsorted(edges, values, side="right")
    for i in range(len(edges) + 1):
        rows = np.flatnonzero(part == i)
        if len(rows):
            low = f"{edges[i - 1]:g} ≤ " if i else ""
            yield Slice(name, f"{low}{name}{f' < {edges[i]:g}' if i < len(edges) else ''}", rows)


def _edges(text: str, rule: str) -> list[float]:
    edges = [_number(part) for part in text.split(",")]
    found = [edge for edge in edges if edge is not None]
    if len(found) != len(edges) or found != sorted(set(found)):
        raise InputError(f"--slice {rule}: {text!r} are no rising numbers; write edges such as {rule.split(':')[0]}:10,20")
    return found


def _numbers(values: Sequence[Any], rule: str) -> np.ndarray:
    numbers = [_number(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if number is None:
            raise InputError(f"--slice {rule}: {value!r} is no number; name the column alone to slice by its values")
    return np.array(numbers, np.float64)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    if name not in rows[0] and name in _OF_TEXT:
        return [_OF_TEXT[name](text_of(row)) for row in rows]
    for i, row in enumerate(rows):
        if name not in row:
            near = difflib.get_close_matches(name, list(row), 1)
            hint = f"; nearest: {near[0]}" if near else f"; it has {', '.join(row)}"
            raise InputError(
                f"--slice {name}: row {i + 1} has no column {name!r}{hint} (or length, words, language of the text)"
            )
    return [row[name] for row in rows]


def _words(text: str) -> int:
    from zenspeed.evaluate.written import answer_tokens

    return len(answer_tokens(text))


def _language(text: str) -> str:
    from py3langid import classify

    return str(classify(text)[0])


_OF_TEXT: dict[str, Callable[[str], Any]] = {"length": len, "words": _words, "language": _language}

"""Parts of the rows that get figures of their own: by a column's values, ranges of a number, or a rule on the text."""

from __future__ import annotations

import difflib
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    if rest.startswith("~"):
        try:
            pattern = re.compile(rest[1:])
        except re.error as error:
            raise InputError(f"--slice {rule}: {rest[1:]!r} is no regular expression: {error}") from None
        names = (f"has {rest[1:]}" if pattern.search(str(value)) else f"has no {rest[1:]}" for value in _values(rows, name))
        yield from _by_value(name, _taken(names))
    elif rest:
        edges, taken = _edges(rest[1:], rule), _taken(_values(rows, name))
        if taken.no_number is not None:
            wrong = str(taken.no_number)
            raise InputError(f"--slice {rule}: {wrong!r} is no number; name the column alone to slice by its values")
        yield from _by_range(name, taken.numbers, edges)
    else:
        yield from _by_column(name, _taken(_values(rows, name)), rule)


class _Taken(NamedTuple):
    """A column in a few bytes a row."""

    names: list[str]
    """Different values, the first _MOST_TEXTS + 1 of them."""
    places: np.ndarray
    """(rows,) int32, which of them each row has; of a column with more, not to be used."""
    numbers: np.ndarray
    """(rows,) as numbers, NaN where they are none."""
    no_number: Any
    """The first value that is none; None: all are."""


def _taken(values: Iterable[Any]) -> _Taken:
    names: dict[str, int] = {}
    places, numbers, no_number = array("i"), array("d"), None
    for value in values:
        text = str(value)
        if len(names) <= _MOST_TEXTS or text in names:
            places.append(names.setdefault(text, len(names)))
        else:
            places.append(0)
        number = _number(value)
        if number is None and no_number is None:
            no_number = value if value is not None else "None"
        numbers.append(math.nan if number is None else number)
    return _Taken(list(names), np.frombuffer(places, np.int32), np.frombuffer(numbers), no_number)


def _by_column(name: str, taken: _Taken, rule: str) -> Iterator[Slice]:
    if len(taken.names) > MOST_VALUES and taken.no_number is None:
        edges = sorted({float(q) for q in np.quantile(taken.numbers, [0.25, 0.5, 0.75])})
        yield from _by_range(name, taken.numbers, edges)
        return
    if len(taken.names) > _MOST_TEXTS:
        raise InputError(
            f"--slice {rule}: more than {_MOST_TEXTS} different values; give ranges ({name}:10,20) or a rule ({name}~word)"
        )
    yield from _by_value(name, taken)


def _by_value(name: str, taken: _Taken) -> Iterator[Slice]:
    for i in sorted(range(len(taken.names)), key=taken.names.__getitem__):
        yield Slice(name, taken.names[i], np.flatnonzero(taken.places == i))


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


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _values(rows: Sequence[Row], name: str) -> Iterator[Any]:
    of_text = _OF_TEXT.get(name)
    for i, row in enumerate(rows):
        if i == 0 and name in row:
            of_text = None
        if of_text is not None:
            yield of_text(text_of(row))
        elif name in row:
            yield row[name]
        else:
            near = difflib.get_close_matches(name, list(row), 1)
            hint = f"; nearest: {near[0]}" if near else f"; it has {', '.join(row)}"
            raise InputError(
                f"--slice {name}: row {i + 1} has no column {name!r}{hint} (or length, words, language of the text)"
            )


def _words(text: str) -> int:
    from zenspeed.evaluate.written import answer_tokens

    return len(answer_tokens(text))


def _language(text: str) -> str:
    from py3langid import classify

    return str(classify(text)[0])


_OF_TEXT: dict[str, Callable[[str], Any]] = {"length": len, "words": _words, "language": _language}

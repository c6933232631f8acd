"""What every reader of rows gives: rows, or the reason why a place in a file is none; and the count of both."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

from zenspeed.config import InputError, nearest

Row = dict[str, object]
"""Column → value: text in CSV and TSV, whatever the file holds in JSON lines, Parquet and Arrow."""

OnBadRow = Literal["stop", "skip"]
QUOTED = 5
"""Bad rows that a report quotes; the others are counted."""


class BadRow(NamedTuple):
    """A row that cannot be read."""

    place: str
    """`file:line`."""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclasses.dataclass
class ReadReport:
    """What was read; filled while rows are taken, complete when the last one is."""

    files: int = 0
    rows: int = 0
    bad_rows: int = 0
    first_bad: list[str] = dataclasses.field(default_factory=list)
    """The first `QUOTED` bad rows: place and reason."""
    empty_texts: int = 0
    """Rows without text in the column that was to be trained on, left out."""

    def bad(self, row: BadRow, on_bad_row: OnBadRow) -> None:
        """Counts a bad row.

        Raises:
            InputError: bad rows are to stop the reading.
        """
        if on_bad_row == "stop":
            raise InputError(f"{row}; put it right, or leave such rows out: data.on_bad_row=skip")
        self.bad_rows += 1
        if len(self.first_bad) < QUOTED:
            self.first_bad.append(str(row))

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def no_column(place: str, column: str, names: Iterable[str], key: str = "data.text_column") -> str:
    """The message for a column that is not there: those that are, nearest first."""
    names = list(names)
    hint = nearest(column, names, f"{key}=") or f"; set {key} to one that is there"
    return f"{place}: no column {column!r}{hint} (columns: {', '.join(nearest_first(column, names))})"


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda n: (-difflib.SequenceMatcher(None, name, n).ratio(), n))


def value_of(row: Row, column: str) -> tuple[bool, object]:
    """Whether the row has `column`, and its value. `a.b` is also the field `b` of a column `a`."""
    if column in row:
        return True, row[column]
    value: object = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def columns_of(row: Row) -> list[str]:
    """Names by which a value of this row can be asked for, `a.b` for those inside others."""
    names: list[str] = []
    for name, value in row.items():
        names += [f"{name}.{inner}" for inner in columns_of(value)] if isinstance(value, dict) and value else [str(name)]
    return names


def not_text(value: object, column: str) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)[:40]
    inside = f"; name one inside: {column}.{next(iter(value))}" if isinstance(value, dict) and value else ""
    return f"column {column!r} is {shown}, not text{inside}"

"""Rows of a file of predictions, read when they are asked for: JSON lines, or a table (.csv, .tsv).

Of a row nothing is held but its place in the file, 8 bytes, so that a million rows cost 8 MB, whatever their texts.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from zenspeed.data.streams import LONGEST_LINE
from zenspeed.errors import InputError, missing

Row = dict[str, Any]
_FRACTION = re.compile(r"\s*[-+]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][-+]?\d+)([eE][-+]?\d+)?\s*")
_MARK = b"\xef\xbb\xbf"
"""Some editors begin a file of UTF-8 with it."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
Read = Callable[[BinaryIO, bool], Iterator[tuple[int, Row]]]
"""Place and row of all from where the file stands; whether that is its beginning."""


class RowFile(Sequence[Row]):
    """The rows of a file in order. Going through them reads it anew; `rows[i]` and `some` read those alone.

    Raises:
        InputError: the file cannot be read, or a line is no row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: np.ndarray | None = None
        delimiter = _DELIMITERS.get(path.suffix.lower())
        self._read: Read = _JsonLines(path) if delimiter is None else _Table(path, delimiter)
        self._copy = _copy_of_stream(path)

    def __iter__(self) -> Iterator[Row]:
        places = array("q") if self._places is None else None
        with self._opened() as file:
            for place, row in self._read(file, True):
                if places is not None:
                    places.append(place)
                yield row
        if places is not None:
            self._places = np.array(places, np.int64)

    def __len__(self) -> int:
        return len(self._placed())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return list(self.some(range(*index.indices(len(self)))))
        return next(self.some([index]))

    def some(self, indices: Iterable[int]) -> Iterator[Row]:
        """The rows of these numbers, in this order."""
        places = self._placed()
        with self._opened() as file:
            for i in indices:
                file.seek(int(places[i]))
                yield next(self._read(file, False))[1]

    def _placed(self) -> np.ndarray:
        if self._places is None:
            for _ in self:
                pass
        assert self._places is not None
        return self._places

    def _opened(self) -> BinaryIO:
        try:
            return (self.path if self._copy is None else Path(self._copy.name)).open("rb")
        except FileNotFoundError:
            raise missing(self.path) from None
        except OSError as error:
            reason = f"cannot be read: {error.strerror}; give a file of JSON lines, .csv or .tsv"
            raise InputError(f"{self.path}: {reason}") from None


class Part(Sequence[Row]):
    """Some of the rows, in any order."""

    def __init__(self, rows: Sequence[Row], places: np.ndarray) -> None:
        self._rows, self._places = rows, places

    def __iter__(self) -> Iterator[Row]:
        if isinstance(self._rows, RowFile):
            yield from self._rows.some(self._places)
        else:
            yield from (self._rows[int(i)] for i in self._places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._rows[int(i)] for i in self._places[index]]
        return self._rows[int(self._places[index])]


def part_of(rows: Sequence[Row], places: np.ndarray) -> Part:
    """The rows at `places`; of a part, those of what it is a part of."""
    return Part(rows._rows, rows._places[places]) if isinstance(rows, Part) else Part(rows, places)


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, file: BinaryIO, from_start: bool) -> Iterator[tuple[int, Row]]:
        place, path = file.tell(), self._path
        for number, line in enumerate(file, 1):
            if number == 1 and from_start and line.startswith(_MARK):
                line, place = line[len(_MARK) :], len(_MARK)
            text = _text(line, path, number)
            if not text.isspace():
                yield place, _object(text, path, number)
            place += len(line)


def _object(text: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number} is no JSON: {error.msg}; write one object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}: line {number} is no object; write {{'label': …, 'prediction': …}}")
    return row


class _Table:
    """The first line names the columns. `rank`, `scores` and lists of references are read as JSON, fractions as numbers."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self._path, self._delimiter = path, delimiter
        self._names: list[str] = []

    def __call__(self, file: BinaryIO, from_start: bool) -> Iterator[tuple[int, Row]]:
        csv.field_size_limit(LONGEST_LINE)  # the module's own limit is one for the process: 128 KiB, which cuts off long texts
        lines = _Lines(file, self._path)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            if from_start:
                self._names = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
            place = lines.place
            for fields in reader:
                if fields:
                    yield place, self._row(fields, lines.number)
                place = lines.place
        except csv.Error as error:
            raise InputError(f"{self._path}: line {lines.number}: {error}; put quotes around the whole field") from None

    def _row(self, fields: list[str], number: int) -> Row:
        if len(fields) != len(self._names):
            found = f"{len(fields)} fields, the first line names {len(self._names)}"
            raise InputError(f"{self._path}: line {number} has {found}; write as many in every line")
        row: Row = dict(zip(self._names, fields, strict=True))
        for name in ("scores", "rank", "reference"):
            if name in row:
                row[name] = _cell(name, row[name], self._path, number)
        for name in [name for name in row if name.startswith("scores.")]:
            row.setdefault("scores", {})[name.removeprefix("scores.")] = _score(row.pop(name), name, self._path, number)
        if _FRACTION.fullmatch(row.get("prediction", "")):
            row["prediction"] = float(row["prediction"])
        return row


class _Lines:
    """Lines as text, with the place where the next begins."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self.place, self.number = file, path, file.tell(), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.place += len(line)
        self.number += 1
        return _text(line, self._path, self.number)


def _text(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: line {number} is not UTF-8; give JSON lines or a table in UTF-8") from None


def _cell(name: str, text: str, path: Path, number: int) -> Any:
    if name == "reference" and not text.startswith("["):
        return text
    if name == "rank" and not text.strip():
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if name == "reference":
            return text
        raise InputError(f"{path}: line {number}: {name} is {text!r}; write it as JSON, or scores.LABEL as columns") from None


def _score(text: str, name: str, path: Path, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}: line {number}: {name} is {text!r}; write a finite number") from None


def _copy_of_stream(path: Path) -> Any:
    """A pipe is read once only: what comes from it is kept in a file, which is gone with its reader."""
    try:
        if not (mode := path.stat().st_mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return None
    except OSError:
        return None  # is said where it is opened
    copy = tempfile.NamedTemporaryFile(prefix="zenspeed-predictions-")  # noqa: SIM115
    with path.open("rb") as stream:
        shutil.copyfileobj(stream, copy)
    copy.flush()
    return copy

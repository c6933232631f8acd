"""CSV and TSV: a line of names, then rows (RFC 4180: quotes around a field, a quote inside it doubled)."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from zenspeed.config import InputError
from zenspeed.data.reading import BadRow, Row
from zenspeed.data.streams import LONGEST_LINE, File, Line, lines, opened


def read_table(path: File, delimiter: str, encoding: str = "utf-8") -> Iterator[tuple[int, Row | BadRow]]:
    """Line number and row, of a file whose first line names the columns.

    A row whose quotes do not close, or with more or fewer fields than there are names, is bad; reading goes on at the line
    after the one it began on, so that one open quote does not swallow the file.

    Raises:
        InputError: there is no line of names, or two columns of one name.
    """
    with opened(path, encoding) as file:
        taken = _Lines(file)
        header = next(_records(taken, path, delimiter), None)
        if header is None or isinstance(header[1], BadRow):
            raise InputError(str(header[1]) if header else f"{path}: is empty; its first line must name the columns")
        names = [name.strip() for name in header[1]]
        if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
            raise InputError(f"{path}:{header[0]}: the fields are parted by {_NAMES[other]}; {_FIXES[other]}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{path}:{header[0]}: two columns are named {twice[0]!r}; name each once")
        for number, fields in _records(taken, path, delimiter):
            if isinstance(fields, BadRow):
                yield number, fields
            elif len(fields) == len(names):
                yield number, dict(zip(names, fields, strict=True))
            elif taken.give_back():
                yield number, BadRow(f"{path}:{number}", f"a quote opens here and closes lines later, in {len(fields)} fields")
            else:
                yield number, BadRow(f"{path}:{number}", f"{len(fields)} fields, the first line names {len(names)}")


_NAMES = {";": "semicolons", "\t": "tabs", "|": "bars"}
_FIXES = {";": "write them with commas", "\t": "name the file .tsv", "|": "write them with commas"}


class _Lines:
    """Lines as text for csv.reader, remembering those of the record at hand so that all but its first can be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = lines(file)
        self._again: deque[Line] = deque()
        self.record: list[Line] = []
        self._bytes = 0

    def begin(self) -> None:
        self.record.clear()
        self._bytes = 0

    def give_back(self) -> bool:
        """Puts all lines but the first of the record back; whether there were any."""
        rest = self.record[1:]
        self._again.extendleft(reversed(rest))
        self.begin()
        return bool(rest)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.record.append(line)
        self._bytes += len(line.data)
        if line.problem is not None or self._bytes > LONGEST_LINE:
            raise _Unreadable(line.problem or f"a quoted field is longer than {LONGEST_LINE:,} bytes")
        return line.data.decode()


class _Unreadable(Exception):
    pass


def _records(taken: _Lines, path: File, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Line number and fields of each record; blank lines are none."""
    csv.field_size_limit(LONGEST_LINE)  # the module's own limit is one for the process: 128 KiB, which cuts off long texts
    reader = csv.reader(taken, delimiter=delimiter, strict=True)
    while True:
        taken.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _Unreadable) as error:
            first = taken.record[0]
            one_line = len(taken.record) == 1
            reason = (
                str(error) if one_line or first.problem else f"a quote opens here and is not closed as it should be ({error})"
            )
            taken.give_back()
            reader = csv.reader(taken, delimiter=delimiter, strict=True)
            yield first.number, BadRow(f"{path}:{first.number}", reason)
            continue
        if fields:
            yield taken.record[0].number, fields

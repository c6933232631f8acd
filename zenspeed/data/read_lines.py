"""JSON lines, and plain text of which every line is a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from zenspeed.data.reading import BadRow, Row
from zenspeed.data.streams import File, Line, lines, opened


def read_json_lines(path: File, encoding: str = "utf-8") -> Iterator[tuple[int, Row | BadRow]]:
    """Line number and row: one JSON object a line; blank lines are no rows."""
    with opened(path, encoding) as file:
        for line in lines(file):
            if line.problem is not None or line.data.strip():
                yield line.number, _json_row(line, f"{path}:{line.number}")


def _json_row(line: Line, place: str) -> Row | BadRow:
    if line.problem is not None:
        return BadRow(place, line.problem)
    try:
        row: Any = json.loads(line.data.rstrip())
    except json.JSONDecodeError as error:
        return BadRow(place, f"not JSON at column {error.colno}: {error.msg}; write one JSON object a line")
    except RecursionError:
        return BadRow(place, "JSON is nested too deeply; write one flat JSON object a line")
    except ValueError as error:  # an integer of thousands of digits
        return BadRow(place, f"not JSON: {error}")
    if not isinstance(row, dict):
        return BadRow(place, f"expected a JSON object, this is a {type(row).__name__}; write one object a line")
    return row


def read_text_lines(path: File, column: str, encoding: str = "utf-8") -> Iterator[tuple[int, Row | BadRow]]:
    """Line number and row: every line that is not blank as a row of the one column `column`."""
    with opened(path, encoding) as file:
        for line in lines(file):
            if line.problem is not None:
                yield line.number, BadRow(f"{path}:{line.number}", line.problem)
            elif line.data.strip():
                yield line.number, {column: line.data.decode().rstrip("\r\n")}

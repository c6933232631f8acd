"""Rows out of what a user has: CSV, TSV, JSON lines, Parquet, datasets of Hugging Face, lines of text; compressed or not.

Rows come lazily, in a stable order (files by path, then as they stand), and none is left out in silence: a `ReadReport`
counts what was read and what could not be, and quotes the first of those with file and line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from zenspeed.config import InputError
from zenspeed.data.files import source_files
from zenspeed.data.read_arrow import read_arrow, read_parquet
from zenspeed.data.read_json import read_json
from zenspeed.data.read_lines import read_json_lines, read_text_lines
from zenspeed.data.read_table import read_table
from zenspeed.data.reading import BadRow, OnBadRow, ReadReport, Row, columns_of, no_column, value_of
from zenspeed.data.streams import File, suffix_of

__all__ = ["BadRow", "ReadReport", "Row", "RowOptions", "read_file", "read_file_rows", "read_rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions:
    columns: tuple[str, ...] = ()
    """Columns that every row must have; `a.b` is the field `b` inside the column `a`, and comes as row["a.b"]."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys of the recipe that name these columns, for messages."""
    only: bool = False
    """Leaves the other columns out."""
    on_bad_row: OnBadRow = "stop"
    encoding: str = "utf-8"
    """Of text files; others are UTF-8 by their format."""
    line_column: str = "text"
    """Name of the only column of plain text, of which each line is a row."""
    split: str = "train"
    """Of a saved dataset or one of the hub."""
    endpoint: str | None = None
    """Address of a mirror of the Hugging Face hub."""
    fetch: bool = False
    """Fetches files of the hub whole and keeps them, instead of reading them while they arrive."""


def read_rows(source: str, options: RowOptions = RowOptions(), report: ReadReport | None = None) -> Iterator[Row]:
    """The rows of `source`: a file, folder, glob, saved dataset or `hf:owner/name`. `report` is filled while they are taken.

    Raises:
        InputError: nothing is there, a file cannot be read, a column is missing, no row is good, or a row is bad and
            `options.on_bad_row` is `stop`; with the place and the fix.
    """
    report = ReadReport() if report is None else report
    for path in source_files(source, split=options.split, endpoint=options.endpoint, fetch=options.fetch):
        report.files += 1
        yield from _good_rows(path, options, report)
    if report.rows == 0:
        first = f"; the first: {report.first_bad[0]}" if report.first_bad else ""
        raise InputError(f"{source}: no row in it can be read{first}" if first else f"{source}: holds no rows")


def _good_rows(path: File, options: RowOptions, report: ReadReport) -> Iterator[Row]:
    for _, row in read_file_rows(path, options, report):
        yield row


def read_file_rows(path: File, options: RowOptions, report: ReadReport) -> Iterator[tuple[int, Row]]:
    """The good rows of one file, each with its line or number; the others as `options` says."""
    table = suffix_of(path) in (".csv", ".tsv", ".parquet", ".arrow")  # all rows have the same columns
    for number, row in read_file(path, options):
        if isinstance(row, BadRow):
            report.bad(row, options.on_bad_row)
            continue
        missing = [c for c in options.columns if not value_of(row, c)[0]]
        if missing:
            message = no_column(
                str(path) if table else f"{path}:{number}",
                missing[0],
                columns_of(row),
                options.keys.get(missing[0], "data.text_column"),
            )
            if table and not any(value_of(row, c.split(".")[0])[0] for c in missing):
                raise InputError(message)
            report.bad(BadRow(*message.split(": ", 1)), options.on_bad_row)
            continue
        report.rows += 1
        yield number, _with_columns(row, options)


def _with_columns(row: Row, options: RowOptions) -> Row:
    if options.only:
        return {c: value_of(row, c)[1] for c in options.columns}
    for column in options.columns:
        if column not in row:
            row[column] = value_of(row, column)[1]
    return row


def read_file(path: File, options: RowOptions) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of one file by its suffix, bad ones among them, each with its line (or its number, where there are no lines)."""
    suffix = suffix_of(path)
    if suffix in (".csv", ".tsv"):
        return read_table(path, "," if suffix == ".csv" else "\t", options.encoding)
    if suffix in (".jsonl", ".ndjson"):
        return read_json_lines(path, options.encoding)
    if suffix == ".json":
        return read_json(path, options.encoding)
    if suffix == ".parquet":
        return enumerate(read_parquet(path, options.columns if options.only else None), 1)
    if suffix == ".arrow":
        return enumerate(read_arrow(path), 1)
    return read_text_lines(path, options.line_column, options.encoding)

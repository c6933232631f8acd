"""Documents out of what a user has: text files, columns of tables and rows, folders and globs of them, or Python's own docs.

Documents come lazily and in a stable order (files by path, then as they stand in the file); no file is held in memory whole
unless it is to be one document. Every document has some text and a UTF-8 form. `data.clean` is applied to each.

Plain text is cut into sections, each a document. With `size = data.section_characters`, a section ends at the first blank
line after `size` characters; if no blank line comes within as many again, at the last end of a line there, else at the last
space or full stop, else right there. Blank lines at a cut are dropped. `size` is lowered to a hundredth of a small corpus
(but not below 200), so that some documents can be held out of any text. With 0 a file is one document, kept to the letter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from zenspeed.config import InputError
from zenspeed.data.distinct import Distinct
from zenspeed.data.files import PYTHON_DOCS, ROW_SUFFIXES, source_files
from zenspeed.data.python_docs import python_docs
from zenspeed.data.reading import BadRow, ReadReport, not_text
from zenspeed.data.rows import RowOptions, read_file_rows
from zenspeed.data.streams import File, blocks, opened, size_of, suffix_of
from zenspeed.recipe import DataConfig, SourceConfig
from zenspeed.text.clean import Cleaner
from zenspeed.text.normalize import replace_surrogates

__all__ = ["PYTHON_DOCS", "SourceReport", "documents", "sections", "source_files", "sources_of"]

_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


@dataclasses.dataclass
class SourceReport:
    """What became of all that was read; complete when the last document was taken."""

    read: ReadReport = dataclasses.field(default_factory=ReadReport)
    cleaned: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"read": self.read.as_dict(), "cleaned": self.cleaned}

    def lines(self) -> list[str]:
        """For people: what was left out or changed, if anything was."""
        out = []
        if self.read.bad_rows:
            out.append(f"{self.read.bad_rows:,} rows could not be read, the first: {self.read.first_bad[0]}")
        if self.read.empty_texts:
            out.append(f"{self.read.empty_texts:,} rows without text, left out")
        if self.cleaned:
            verbs = {"changed": "changed by", "dropped": "left out by", "tags": "tags put in:"}
            parts = [f"{verb} {_counts(self.cleaned[key])}" for key, verb in verbs.items() if any(self.cleaned[key].values())]
            out.append(f"cleaned {self.cleaned['texts']:,} texts: {'; '.join(parts) or 'nothing to change'}")
        return out


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def sources_of(config: DataConfig, source: str) -> list[SourceConfig]:
    """What is behind `source`: the mixture of `config.sources` if there is one and `source` is the training data."""
    return config.sources if config.sources and source == config.source else [SourceConfig(source=source)]


def documents(config: DataConfig, source: str, report: SourceReport | None = None) -> Iterator[str]:
    """The documents of `source`, which is `config.source` or the path in `config.validation`.

    Raises:
        InputError: `source` is not there, holds no text, or a file in it cannot be read as text.
    """
    report = SourceReport() if report is None else report
    found = _mixture(config, source, report.read)
    yield from _cleaned(config, found, report) if config.clean.does_anything else found


def _mixture(config: DataConfig, source: str, report: ReadReport) -> Iterator[str]:
    for part in sources_of(config, source):
        for text in _documents_of(config, part, report):
            for _ in range(1 if part.weight == 1 else copies(text, part.weight, config.mixture_seed)):
                yield text


def copies(text: str, weight: float, seed: int) -> int:
    """How often a text is read: `weight` on average over texts, a pure function of text, weight and seed."""
    key = seed.to_bytes(8, "little", signed=False)
    drawn = hashlib.blake2b(text.encode(), digest_size=8, key=key, person=b"zenspeed-mixture").digest()
    whole = int(weight)
    return whole + (int.from_bytes(drawn, "little") < (weight - whole) * 2.0**64)


def _cleaned(config: DataConfig, texts: Iterator[str], report: SourceReport) -> Iterator[str]:
    clean, distinct = Cleaner(config.clean), None
    kept: Iterator[str] = (cleaned for text in texts if (cleaned := clean(text)) is not None)
    if config.clean.duplicates != "keep":
        distinct = Distinct(config.clean.duplicates)
        kept = distinct(kept)
    anything = False
    for text in kept:
        anything = True
        yield text
    report.cleaned = clean.as_dict()
    if distinct is not None:
        report.cleaned["dropped"]["duplicates"] = distinct.dropped
    if not anything:
        dropped = ", ".join(f"{step} {count:,}" for step, count in report.cleaned["dropped"].items())
        raise InputError(f"data.clean: leaves no text of {clean.texts:,} (left out by {dropped}); ask for less")


def _documents_of(config: DataConfig, part: SourceConfig, report: ReadReport) -> Iterator[str]:
    source = part.source
    if source == PYTHON_DOCS:
        yield from python_docs()
        return
    files = source_files(source, split=config.split, endpoint=config.endpoint, fetch=config.fetch, cache=config.cache)
    size = _section_size(config.section_characters, files)
    anything, bad_before = False, report.bad_rows
    for path in files:
        report.files += 1
        of_rows = suffix_of(path) in ROW_SUFFIXES
        column = part.text_column or config.text_column
        inside = _texts(path, column, config, report) if of_rows else _plain_text(path, size, config.encoding)
        for document in inside:
            anything = True
            yield document
    if not anything:
        bad = report.bad_rows - bad_before
        why = f"no row of it can be read ({bad:,} bad); the first: {report.first_bad[0]}" if bad else "only blank space"
        raise InputError(f"{source}: holds no text, {why}; give files with text in them")


def _texts(path: File, column: str, config: DataConfig, report: ReadReport) -> Iterator[str]:
    """The column `column` of the rows of a file, blank ones left out and counted."""
    options = RowOptions(columns=(column,), only=True, on_bad_row=config.on_bad_row, encoding=config.encoding)
    for number, row in read_file_rows(path, options, report):
        text = row[column]
        if not isinstance(text, str):
            report.rows -= 1
            report.bad(BadRow(f"{path}:{number}", not_text(text, column)), config.on_bad_row)
        elif text.strip():
            yield replace_surrogates(text)
        else:
            report.empty_texts += 1


# ---- plain text


def _section_size(wanted: int, files: list[File]) -> int:
    plain_bytes = sum(size_of(p) for p in files if suffix_of(p) not in ROW_SUFFIXES)
    return min(wanted, max(plain_bytes // 100, 200))


def _plain_text(path: File, size: int, encoding: str) -> Iterator[str]:
    decoded = _decoded(path, encoding)
    for text in sections(decoded, size) if size else ["".join(decoded)]:
        if text.strip():
            yield text


def sections(blocks: Iterable[str], size: int) -> Iterator[str]:
    """Cuts text that comes in `blocks` into sections by the rule above, the same wherever the blocks end."""
    text = ""
    for block in blocks:
        text, start = text + block, 0
        while len(text) - start > 2 * size:
            cut = section_end(text, start, size)
            yield _without_blank_edges(text[start:cut])
            start = cut
        text = text[start:]
    while text:
        cut = section_end(text, 0, size)
        yield _without_blank_edges(text[:cut])
        text = text[cut:]


def section_end(text: str, start: int, size: int) -> int:
    """Where the section that begins at `start` ends; looks at no character beyond start + 2 * size."""
    low, high = start + size, start + 2 * size
    if len(text) <= low:
        return len(text)
    blank = _BLANK_LINES.search(text, low, high)
    if blank:
        return blank.end()
    if len(text) < high:
        return len(text)
    line = text.rfind("\n", low, high)
    if line < 0:
        line = max(text.rfind(mark, low, high) for mark in " \t。！？")
    return line + 1 if line >= 0 else high


def _without_blank_edges(text: str) -> str:
    """`text` without the blank lines around it and the last end of a line; the indentation of its first line stays."""
    first = len(text) - len(text.lstrip(" \t\r\n"))
    after = len(text.rstrip(" \t\r\n"))
    end = text.find("\n", after)
    return text[text.rfind("\n", 0, first) + 1 : end if end >= 0 else None].rstrip("\r")


def _decoded(path: File, encoding: str) -> Iterator[str]:
    """The text of a file, block by block.

    Raises:
        InputError: the file cannot be read, holds NUL bytes, or is not UTF-8; the last two with the byte offset.
    """
    offset, half = 0, b""  # `half`: first bytes of a character whose end is in the next block
    with opened(path, encoding) as file:
        for block in blocks(file):
            if offset == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{path}: not UTF-8 at byte 0, this looks like UTF-16; set data.encoding=utf-16")
            zero = block.find(b"\0")
            if zero >= 0:
                raise InputError(f"{path}: a binary file (NUL at byte {offset + zero}); give plain text")
            data, start = half + block, offset - len(half)
            text, half = _decode(path, data, start)
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(block)
    if half:
        raise InputError(f"{path}: not UTF-8 at byte {offset - len(half)}: the last character is cut off")


def _decode(path: File, data: bytes, start: int) -> tuple[str, bytes]:
    """The text of `data`, which begins at byte `start` of the file, and the bytes at its end that are half a character."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.end == len(data) and error.reason == "unexpected end of data":
            return data[: error.start].decode(), data[error.start :]
        at = start + error.start
        raise InputError(f"{path}: not UTF-8 at byte {at}; set data.encoding to its own, such as gb18030 or latin-1") from None

"""Documents out of what a user has: text files, JSON lines, folders and globs of them, or Python's own documentation.

Documents come lazily and in a stable order (files by path, then as they stand in the file); no file is held in memory whole
unless it is to be one document. Every document has some text and a UTF-8 form.

Plain text is cut into sections, each a document. With `size = data.section_characters`, a section ends at the first blank
line after `size` characters; if no blank line comes within as many again, at the last end of a line there, else at the last
space or full stop, else right there. Blank lines at a cut are dropped. `size` is lowered to a hundredth of a small corpus
(but not below 200), so that some documents can be held out of any text. With 0 a file is one document, kept to the letter.
"""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zenspeed.config import InputError, nearest
from zenspeed.data.python_docs import python_docs
from zenspeed.recipe import DataConfig
from zenspeed.text.normalize import replace_surrogates

PYTHON_DOCS = "python-docs"
SUFFIXES = (".txt", ".md", ".py", ".rst", ".jsonl")
"""What is read in a folder; a file that is named by itself may have any suffix, and is plain text unless it is .jsonl."""

_BLOCK_BYTES = 1 << 20
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


def documents(config: DataConfig, source: str) -> Iterator[str]:
    """The documents of `source`, which is `config.source` or the path in `config.validation`.

    Raises:
        InputError: `source` is not there, holds no text, or a file in it cannot be read as text.
    """
    if source == PYTHON_DOCS:
        yield from python_docs()
        return
    files = source_files(source)
    size = _section_size(config.section_characters, files)
    anything = False
    for path in files:
        inside = _rows(path, config.text_column) if path.suffix == ".jsonl" else _plain_text(path, size)
        for document in inside:
            anything = True
            yield document
    if not anything:
        raise InputError(f"{source}: holds no text, only blank space; give files with text in them")


def source_files(source: str) -> list[Path]:
    """The files that `source` names, in the order they are read, each with something in it.

    Raises:
        InputError: there is none.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = _files_in(path)
        elif path.exists():
            files = [path]
        elif glob.has_magic(source):
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(p for p in map(Path, matches) if p.is_file())
            if not files:
                raise InputError(f"{source}: no file matches")
        else:
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, [*beside, PYTHON_DOCS] if path.name == source else beside)
            raise InputError(f"{source}: no such file{hint or '; give a text file, a folder or python-docs'}")
        filled = [p for p in files if p.stat().st_size]
    except OSError as error:
        raise InputError(f"{error.filename or source}: cannot be read: {error.strerror}") from None
    if not filled:
        raise InputError(f"{source}: {'is empty' if files == [path] else 'all files in it are empty'}; give text to train on")
    return filled


def _files_in(folder: Path) -> list[Path]:
    """Files below `folder` with a suffix we read, hidden files and folders left out."""
    inside = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    inside = [p for p in inside if p.is_file()]
    files = sorted(p for p in inside if p.suffix in SUFFIXES)
    if not files:
        others = Counter(p.suffix or p.name for p in inside).most_common(3)
        there = "; there are " + ", ".join(f"{n} {kind}" for kind, n in others) if others else ""
        raise InputError(
            f"{folder}: no file of {', '.join(SUFFIXES)} in this folder{there}; name others by a glob, as '{folder}/*.log'"
        )
    return files


# ---- plain text


def _section_size(wanted: int, files: list[Path]) -> int:
    plain_bytes = sum(p.stat().st_size for p in files if p.suffix != ".jsonl")
    return min(wanted, max(plain_bytes // 100, 200))


def _plain_text(path: Path, size: int) -> Iterator[str]:
    blocks = _decoded(path)
    for text in sections(blocks, size) if size else ["".join(blocks)]:
        if text.strip():
            yield text


def sections(blocks: Iterable[str], size: int) -> Iterator[str]:
    """Cuts text that comes in `blocks` into sections by the rule above, the same wherever the blocks end."""
    text = ""
    for block in blocks:
        text, start = text + block, 0
        while len(text) - start > 2 * size:
            cut = _cut(text, start, size)
            yield _without_blank_edges(text[start:cut])
            start = cut
        text = text[start:]
    while text:
        cut = _cut(text, 0, size)
        yield _without_blank_edges(text[:cut])
        text = text[cut:]


def _cut(text: str, start: int, size: int) -> int:
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


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file, block by block.

    Raises:
        InputError: the file cannot be read, holds NUL bytes, or is not UTF-8; the last two with the byte offset.
    """
    offset, half = 0, b""  # `half`: first bytes of a character whose end is in the next block
    for block in _blocks(path):
        if offset == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: not UTF-8 at byte 0, this looks like UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
        zero = block.find(b"\0")
        if zero >= 0:
            raise InputError(f"{path}: a binary file (NUL at byte {offset + zero}); give plain text")
        data, start = half + block, offset - len(half)
        text, half = _decode(path, data, start)
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(block)
    if half:
        raise InputError(f"{path}: not UTF-8 at byte {offset - len(half)}: the last character is cut off")


def _decode(path: Path, data: bytes, start: int) -> tuple[str, bytes]:
    """The text of `data`, which begins at byte `start` of the file, and the bytes at its end that are half a character."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.end == len(data) and error.reason == "unexpected end of data":
            return data[: error.start].decode(), data[error.start :]
        at = start + error.start
        raise InputError(f"{path}: not UTF-8 at byte {at}; convert it: iconv -f ITS_ENCODING -t UTF-8") from None


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


# ---- JSON lines


def _rows(path: Path, column: str) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            yield from _texts(path, file, column)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _texts(path: Path, file: BinaryIO, column: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(file, 1):
        if b"\0" in line:
            raise InputError(f"{path}: a binary file (NUL at byte {offset + line.index(0)}); give JSON lines")
        text = _text_of_row(line, column, f"{path}:{number}", offset) if line.strip() else ""
        if text.strip():
            yield replace_surrogates(text)
        offset += len(line)


def _text_of_row(line: bytes, column: str, place: str, offset: int) -> str:
    try:
        row: Any = json.loads(line.rstrip().decode("utf-8-sig" if offset == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 at byte {offset + error.start}; convert it: iconv -f ITS_ENCODING -t UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON at column {error.colno}: {error.msg}; write one JSON object a line") from None
    except RecursionError:
        raise InputError(f"{place}: JSON is nested too deeply; write one flat JSON object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object with the column {column!r}, this is a {type(row).__name__}")
    if column not in row:
        hint = nearest(column, row, "data.text_column=") or "; set data.text_column to one that is there"
        raise InputError(f"{place}: no column {column!r}{hint} (columns: {', '.join(_nearest_first(column, row))})")
    if not isinstance(row[column], str):
        raise InputError(
            f"{place}: column {column!r} is {json.dumps(row[column])[:40]}, not text; take the row out or name another"
        )
    return row[column]


def _nearest_first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda n: (-difflib.SequenceMatcher(None, name, n).ratio(), n))

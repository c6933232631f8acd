"""Bytes and lines of a file, whatever compressed it and however large it is: nothing is held but a block or a line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from zenspeed.config import InputError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
LONGEST_LINE = 1 << 28
"""Bytes; a line beyond it is a row that cannot be read, and is not held."""

_BLOCK_BYTES = 1 << 20
_UTF8 = ("utf-8", "utf-8-sig", "ascii")


class RemoteFile(Protocol):
    """A file that is read where it lies."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def identity(self) -> str:
        """Hexadecimal, of its content: files of one identity are the same."""

    def stream(self) -> BinaryIO:
        """From the first byte to the last, in order."""

    def anywhere(self) -> BinaryIO:
        """Bytes wherever they are asked for, and few others."""


File = Path | RemoteFile


class Line(NamedTuple):
    """A line with its end, or the reason why it is none."""

    number: int
    """From 1."""
    offset: int
    """Bytes before it, in the decompressed file."""
    data: bytes
    problem: str | None


def needs(module: str, package: str, what: str) -> Any:
    """Imports an optional dependency where it is used.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs the package {package}; install it: pip install 'zenspeed[data]'") from None


def size_of(file: File) -> int:
    """Bytes of a file as it lies, compressed or not."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def suffix_of(path: File) -> str:
    """The suffix that tells what is in a file: `.csv` of `a.csv.gz`, in small letters."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


@contextmanager
def opened(path: File, encoding: str = "utf-8") -> Iterator[BinaryIO]:
    """The decompressed bytes of a file, turned into UTF-8 if `encoding` is another.

    Raises:
        InputError: the file cannot be read, is cut off or damaged, or changed while it was read; also from the reads inside.
    """
    try:
        before = _written(path)
        with _decompressed(path) as file:
            if codecs.lookup(encoding).name in _UTF8:
                yield file
            else:
                yield cast(BinaryIO, io.BufferedReader(_AsUtf8(file, encoding)))
        after = _written(path)
    except EOFError:
        raise InputError(f"{path}: the compressed file is cut off; fetch or write it again") from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the compressed file is damaged: {error}; fetch or write it again") from None
    except UnicodeError as error:
        raise InputError(f"{path}: not {encoding}: {error}; set data.encoding to what it is in") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":
            raise InputError(f"{path}: the compressed file is damaged: {error}; fetch or write it again") from None
        raise
    if before != after:
        raise InputError(f"{path}: changed while it was read; run it again when nobody writes to it")


def _written(file: File) -> tuple[int, int] | None:
    """Size and time of a file that somebody may write to meanwhile."""
    if not isinstance(file, Path):
        return None
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _decompressed(path: File) -> Iterator[BinaryIO]:
    with path.open("rb") if isinstance(path, Path) else path.stream() as raw:
        openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        if path.suffix.lower() == ".zst":
            openers[".zst"] = needs("backports.zstd", "backports.zstd", str(path)).open
        opener = openers.get(path.suffix.lower())
        if opener is None:
            yield raw
        else:
            with opener(raw, "rb") as file:
                yield file


class _AsUtf8(io.RawIOBase):
    """What a file in another encoding would be in UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._decoder, self._left = file, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._file.read(_BLOCK_BYTES)
            self._left = self._decoder.decode(block, final=not block).encode()
            if not block:
                break
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """The lines of a file of UTF-8; one that is too long, or holds what no text holds, says so."""
    offset = number = 0
    while data := file.readline(longest + 1):
        number += 1
        size, problem = len(data), None
        if number == 1:
            data = data.removeprefix(codecs.BOM_UTF8)
        if len(data) > longest:
            problem = f"the line is longer than {longest:,} bytes"
            while not data.endswith(b"\n") and (data := file.readline(longest)):
                size += len(data)
            data = b""
        elif b"\0" in data:
            problem = f"a NUL at byte {offset + data.index(0)}: not text, or another encoding"
        elif not data.isascii():
            problem = _not_utf8(data, offset)
        yield Line(number, offset, data, problem)
        offset += size


def _not_utf8(data: bytes, offset: int) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {offset + error.start}"
    return None

"""Token shards: tokenized documents on disk, read through memory maps.

A shard is one file, `.ztok`, little-endian:

    offset  bytes  content
         0      8  magic, b"ZENZTOK\\0"
         8      4  version, 1
        12      4  bytes of a token: 2 (uint16) or 4 (uint32)
        16      8  num_tokens, the end-of-text tokens included
        24      8  num_documents
        32      8  num_bytes, UTF-8 bytes of all documents
        40     32  SHA-256 of the payload, which is all that follows the header
        72      4  zero
        76      4  CRC-32 of the header up to here
        80    8 D  int64 for each of the D documents: where in the tokens it starts (at its end-of-text token)
         …    8 D  int64 for each document: its UTF-8 bytes
         …         tokens

The shards of a split are one stream: every document is stored as end-of-text and its tokens, and after the last document
stands one more end-of-text:

    <eot> the first document <eot> the second <eot> … <eot> the last <eot>

So inputs are stream[:-1] and targets stream[1:] with nothing to mask; the number of the document inside a window is
cumsum(tokens == end_of_text); a model learns where documents begin and end.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from zenspeed.config import InputError

MAGIC = b"ZENZTOK\0"
VERSION = 1

_HEADER = struct.Struct("<8sIIQQQ32sI")  # as in the table; the CRC-32 of these bytes follows
_HEADER_BYTES = _HEADER.size + 4
_TOKEN_TYPES: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type on disk that holds every token number."""
    return _TOKEN_TYPES[2 if vocab_size <= 1 << 16 else 4]


def write_shard(path: Path, tokens: np.ndarray, document_starts: np.ndarray, document_bytes: np.ndarray) -> None:
    """Writes one shard beside `path`, flushes it to disk and renames it: `path` is a whole shard or not there.

    Args:
        tokens: (num_tokens,) uint16 or uint32, in the stream's convention.
        document_starts: (num_documents,) index in `tokens` of each document's end-of-text, ascending.
        document_bytes: (num_documents,) UTF-8 bytes of each document.

    Raises:
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    tokens = np.ascontiguousarray(tokens, dtype=_TOKEN_TYPES[tokens.dtype.itemsize])
    payload = [np.ascontiguousarray(part, dtype="<i8") for part in (document_starts, document_bytes)] + [tokens]
    digest = hashlib.sha256()
    for part in payload:
        digest.update(part.data)
    header = _HEADER.pack(
        MAGIC, VERSION, tokens.itemsize, len(tokens), len(document_starts), int(np.sum(document_bytes)), digest.digest(), 0
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(header + struct.pack("<I", zlib.crc32(header)))
            for part in payload:
                file.write(part.data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Shard:
    """One shard file. Header and length are checked by `open`, the checksum when tokens are first read."""

    def __init__(self, path: Path, dtype: np.dtype, num_tokens: int, num_documents: int, num_bytes: int, digest: bytes) -> None:
        self.path = path
        self.num_tokens = num_tokens
        self.num_documents = num_documents
        self.num_bytes = num_bytes
        self.digest = digest
        self._dtype = dtype

    @classmethod
    def open(cls, path: Path) -> Shard:
        """The shard at `path`; no token is read yet.

        Raises:
            InputError: the file is missing, is no shard, is of another version, or is damaged or cut off.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(_HEADER_BYTES)
                length = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise _damaged(path, f"cannot be read: {error.strerror}") from None
        if len(raw) < _HEADER_BYTES:
            raise _damaged(path, f"cut off after {len(raw)} bytes")
        magic, version, width, num_tokens, num_documents, num_bytes, digest, _ = _HEADER.unpack_from(raw)
        if magic != MAGIC:
            raise _damaged(path, f"not a token shard, it begins with {magic!r}")
        if struct.unpack_from("<I", raw, _HEADER.size)[0] != zlib.crc32(raw[: _HEADER.size]):
            raise _damaged(path, "the header is damaged")
        if version != VERSION:
            raise _damaged(path, f"version {version}, this program reads {VERSION}")
        if width not in _TOKEN_TYPES:
            raise _damaged(path, f"tokens of {width} bytes, expected 2 or 4")
        expected = _HEADER_BYTES + 16 * num_documents + width * num_tokens
        if length != expected:
            raise _damaged(path, f"{length} bytes long, expected {expected}")
        return cls(path, _TOKEN_TYPES[width], num_tokens, num_documents, num_bytes, digest)

    @property
    def tokens(self) -> np.ndarray:
        """(num_tokens,) memory map, read-only."""
        return self._payload[2]

    @property
    def document_starts(self) -> np.ndarray:
        """(num_documents,) int64, index of each document's end-of-text token."""
        return self._payload[0]

    @property
    def document_bytes(self) -> np.ndarray:
        """(num_documents,) int64, UTF-8 bytes of each document."""
        return self._payload[1]

    @cached_property
    def _payload(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            payload = np.memmap(self.path, dtype=np.uint8, mode="r", offset=_HEADER_BYTES)
        except (OSError, ValueError) as error:
            raise _damaged(self.path, f"cannot be mapped: {error}") from None
        if hashlib.sha256(payload.data).digest() != self.digest:
            raise _damaged(self.path, "the content does not match its checksum")
        plain = payload.view(np.ndarray)  # slices of an ndarray cost a fifth of those of a memmap
        table = 8 * self.num_documents
        starts, sizes = plain[:table].view("<i8"), plain[table : 2 * table].view("<i8")
        return starts, sizes, plain[2 * table :].view(self._dtype)


class TokenDataset:
    """The shards of one split as one stream of tokens."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        assert shards
        self.shards = list(shards)
        self._first = list(itertools.accumulate((s.num_tokens for s in self.shards), initial=0))  # and the end of the last
        self.num_tokens = self._first[-1]
        self.num_documents = sum(s.num_documents for s in self.shards)
        self.num_bytes = sum(s.num_bytes for s in self.shards)

    @classmethod
    def open(cls, paths: Sequence[Path]) -> TokenDataset:
        """The split whose shards are at `paths`, in order."""
        return cls([Shard.open(path) for path in paths])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, uint16 or uint32, across shards; a view where they lie in one shard."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.num_tokens}")
        n = bisect.bisect_right(self._first, start) - 1
        parts = []
        while start < stop:
            first, end = self._first[n], min(stop, self._first[n + 1])
            parts.append(self.shards[n].tokens[start - first : end - first])
            start, n = end, n + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint16)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """(num_documents,) int64, index in the stream of each document's end-of-text token."""
        return np.concatenate([s.document_starts + first for s, first in zip(self.shards, self._first, strict=False)])

    @cached_property
    def document_bytes(self) -> np.ndarray:
        """(num_documents,) int64, UTF-8 bytes of each document."""
        return np.concatenate([s.document_bytes for s in self.shards])

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all shards."""
        return hashlib.sha256(b"".join(s.digest for s in self.shards)).hexdigest()


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}; delete it and run `zenspeed prepare` again")

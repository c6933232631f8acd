"""What a server acknowledged, on disk: a checkpoint of its state, and behind it a log of every share taken since.

    <folder>/checkpoints/step-…     weights, optimizer, spec (zenspeed/checkpoint.py: atomic, checksummed)
    <folder>/log-<version>          records: length, crc32, a frame's head and body

A share is in the log before it is acknowledged, and updates are a function of the shares in the order of the log, so a server
that was killed comes back with the same bits. Written to the operating system each time, which outlives the process; `sync`
also waits for the disk each time, which outlives the machine.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zenspeed.checkpoint import Checkpoint, Checkpointer, list_checkpoints
from zenspeed.server.store import Store
from zenspeed.server.wire import memory_of

RECORD = struct.Struct("<IQI")  # bytes of head, bytes of body, crc32 of both
LOG_FACTOR = 32  # a new checkpoint when the log is so many times the weights …
LOG_BYTES = 256 << 20  # … and at least this long


class Journal:
    """The journal of one server in `folder`."""

    def __init__(self, folder: Path, *, sync: bool = False, log_bytes: int = LOG_BYTES) -> None:
        self.folder, self.sync, self.log_bytes = folder, sync, log_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer = Checkpointer(folder / "checkpoints", keep=1, keep_best=False)
        self._file: BinaryIO | None = None

    def last(self) -> Checkpoint | None:
        """The state to come back with, if there is one."""
        there = list_checkpoints(self.folder / "checkpoints")
        return Checkpoint(there[-1]) if there else None

    def records(self, name: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """What the log `name` holds, up to the first record that was cut off; what comes next is written behind it."""
        path, good = self.folder / name, 0
        length = path.stat().st_size
        with path.open("rb") as file:
            while len(front := file.read(RECORD.size)) == RECORD.size:
                head_bytes, body_bytes, checksum = RECORD.unpack(front)
                if head_bytes + body_bytes > length - file.tell():
                    break
                data = bytearray(file.read(head_bytes + body_bytes))
                if zlib.crc32(data) != checksum:
                    break
                good = file.tell()
                yield json.loads(data[:head_bytes]), torch.frombuffer(data, dtype=torch.uint8)[head_bytes:].clone()
        with path.open("r+b") as file:
            file.truncate(good)
        self._file = path.open("ab", buffering=0)

    def write(self, head: dict[str, Any], body: Tensor) -> None:
        """Adds a record; when this returns it is not lost."""
        assert self._file is not None
        text = json.dumps(head).encode()
        memory = memory_of(body)
        checksum = zlib.crc32(memory, zlib.crc32(text))
        for part in (RECORD.pack(len(text), len(memory), checksum) + text, memory):
            while len(part):
                part = part[self._file.write(part) :]
        if self.sync:
            os.fdatasync(self._file.fileno())

    def is_long(self, weight_bytes: int) -> bool:
        return self._file is not None and self._file.tell() > max(self.log_bytes, LOG_FACTOR * weight_bytes)

    def start_anew(self, store: Store, state: dict[str, Any], pending: Iterable[tuple[dict[str, Any], Tensor]]) -> None:
        """A checkpoint of `store`, and a new log that begins with the shares whose update is not complete."""
        name = f"log-{store.version:08d}"
        if self._file is not None:
            self._file.close()
        new = self.folder / f"{name}.new" if (self.folder / name).exists() else self.folder / name
        self._file = new.open("wb", buffering=0)
        for head, body in pending:
            self.write(head, body)
        os.fsync(self._file.fileno())
        self._checkpointer.save(store.version, store.shards(), store.scalars(), state | {"log": new.name}, wait=True)
        for old in self.folder.glob("log-*"):
            if old.name != new.name:
                old.unlink()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

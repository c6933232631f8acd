"""Frames over TCP: a fixed header, a small JSON head, a raw body. No pickle; nothing is allocated before its size is checked.

    magic "ZSP1" | kind u16 | reserved u16 | head bytes u32 | body bytes u64 | head (JSON) | body (numbers, little endian)

Both sides prove that they have the key before anything else is said (HMAC-SHA256 over both sides' random numbers, compared in
constant time). What is said afterwards is neither encrypted nor signed: use a network you trust, or a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import json
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAGIC = b"ZSP1"
HEADER = struct.Struct("<4sHHIQ")
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_HEAD = 16 << 20  # names and shapes of a large model are the longest
SMALL = 4096  # of a head of any other kind


class WireError(Exception):
    """Bytes that are no frame, a frame too large, a key that is not ours, or a connection that ended inside a frame."""


class Refused(Exception):
    """The other side understood, and says why it will not."""


class Kind(enum.IntEnum):
    OK = 0
    ERROR = 1
    HELLO = 2
    STATUS = 3
    START = 4
    JOIN = 5
    TAKE = 6
    PULL = 7
    PUSH = 8
    STATE = 9
    NORM = 10
    STOP = 11


class Frame(NamedTuple):
    kind: Kind
    head: dict[str, Any]
    body: Tensor  # uint8, one dimension

    @property
    def num_bytes(self) -> int:
        return HEADER.size + self.body.numel()


EMPTY = torch.empty(0, dtype=torch.uint8)


def pack(kind: Kind, head: Mapping[str, Any], body_bytes: int) -> bytes:
    """Header and head of a frame; the body is sent behind it."""
    text = json.dumps(head, allow_nan=False).encode()
    return HEADER.pack(MAGIC, kind, 0, len(text), body_bytes) + text


def parse_header(data: bytes, max_body: int) -> tuple[Kind, int, int]:
    """Kind, bytes of the head, bytes of the body.

    Raises:
        WireError: no header of ours, or more bytes than such a frame may have.
    """
    magic, number, reserved, head, body = HEADER.unpack(data)
    if magic != MAGIC or reserved:
        raise WireError(f"no frame of ours (begins with {data[:4]!r})")
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"unknown kind {number}") from None
    most = MAX_HEAD if kind in (Kind.START, Kind.STATE, Kind.OK) else SMALL
    if head > most or body > max_body:
        raise WireError(f"{kind.name}: {head:,} + {body:,} bytes, at most {most:,} + {max_body:,} are taken")
    return kind, head, body


def parse_head(data: bytes) -> dict[str, Any]:
    try:
        head = json.loads(data, parse_constant=_no_constant) if data else {}
    except (ValueError, RecursionError):
        raise WireError("head is not JSON") from None
    if not isinstance(head, dict):
        raise WireError("head is no JSON object")
    return head


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _room_for(count: int, kind: Kind) -> Tensor:
    """Memory for a body; the system gives its pages as bytes arrive, so a length alone takes nothing."""
    try:
        return torch.empty(count, dtype=torch.uint8)
    except RuntimeError:
        raise WireError(f"{kind.name}: no memory for {count:,} bytes") from None


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, as uint8."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def memory_of(tensor: Tensor) -> memoryview:
    """The memory of a uint8 tensor, to read from or write to."""
    return memoryview(tensor.numpy())  # type: ignore[arg-type]


def prove(key: bytes, role: bytes, mine: bytes, theirs: bytes) -> bytes:
    """What only who has the key can say about these two random numbers."""
    return hmac.new(key, b"zenspeed " + role + mine + theirs, hashlib.sha256).digest()


# The server's side ------------------------------------------------------------------------------------------------------


class Stream:
    """One connection of the server."""

    def __init__(self, connection: socket.socket, message_seconds: float) -> None:
        self.connection, self.message_seconds = connection, message_seconds
        self._loop = asyncio.get_running_loop()

    async def authenticate(self, key: bytes) -> None:
        """Raises WireError unless the other side has the key."""
        mine = secrets.token_bytes(NONCE_BYTES)
        await self._loop.sock_sendall(self.connection, MAGIC + mine)
        answer = await self._read(NONCE_BYTES + PROOF_BYTES)
        theirs, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(proof, prove(key, b"worker", mine, theirs)):
            raise WireError("does not have the key")
        await self._loop.sock_sendall(self.connection, prove(key, b"server", theirs, mine))

    async def receive(self, max_body: int) -> Frame:
        """The next frame. It may be long in coming, but once it has begun it must be complete in `message_seconds`."""
        first = await self._loop.sock_recv(self.connection, 1)
        if not first:
            raise EOFError
        async with asyncio.timeout(self.message_seconds):
            kind, head_bytes, body_bytes = parse_header(first + await self._read(HEADER.size - 1), max_body)
            head = parse_head(await self._read(head_bytes))
            body = _room_for(body_bytes, kind)
            await self._fill(memory_of(body))
        return Frame(kind, head, body)

    async def send(self, kind: Kind, head: Mapping[str, Any], body: Tensor = EMPTY) -> None:
        async with asyncio.timeout(self.message_seconds):
            await self._loop.sock_sendall(self.connection, pack(kind, head, body.numel()))
            if body.numel():
                await self._loop.sock_sendall(self.connection, memory_of(body))

    async def _read(self, count: int) -> bytes:
        data = bytearray(count)
        await self._fill(memoryview(data))
        return bytes(data)

    async def _fill(self, view: memoryview) -> None:
        while view:
            count = await self._loop.sock_recv_into(self.connection, view)
            if count == 0:
                raise WireError("ended inside a frame")
            view = view[count:]


# A worker's side --------------------------------------------------------------------------------------------------------


class Connection:
    """One connection of a worker, blocking. `moved`: bytes sent and received."""

    def __init__(self, address: tuple[str, int], key: bytes) -> None:
        self.moved = 0
        self._socket = socket.create_connection(address, timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(self._socket)
        try:
            self._authenticate(key)
        except (WireError, OSError):
            self.close()
            raise
        self._socket.settimeout(None)  # an answer may be long in coming; a machine that has gone is noticed all the same

    def _authenticate(self, key: bytes) -> None:
        greeting = self._read(len(MAGIC) + NONCE_BYTES)
        if greeting[: len(MAGIC)] != MAGIC:
            raise WireError("is no parameter server of this version")
        theirs, mine = greeting[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
        self._socket.sendall(mine + prove(key, b"worker", theirs, mine))
        try:
            proof = self._read(PROOF_BYTES)
        except (WireError, ConnectionError):
            raise Refused(
                "the server does not take this key; parallel.server.key_file is to be the one it was started with"
            ) from None
        if not hmac.compare_digest(proof, prove(key, b"server", mine, theirs)):
            raise Refused("the server does not have this key")

    def send(self, kind: Kind, head: Mapping[str, Any], body: Tensor = EMPTY) -> None:
        front = pack(kind, head, body.numel())
        self._socket.sendall(front)
        if body.numel():
            self._socket.sendall(memory_of(body))
        self.moved += len(front) + body.numel()

    def receive(self, max_body: int) -> Frame:
        """The answer to what was sent.

        Raises:
            Refused: the server says no, and why.
        """
        kind, head_bytes, body_bytes = parse_header(self._read(HEADER.size), max_body)
        head = parse_head(self._read(head_bytes))
        body = torch.empty(body_bytes, dtype=torch.uint8)
        self._fill(memory_of(body))
        self.moved += HEADER.size + head_bytes + body_bytes
        if kind == Kind.ERROR:
            raise Refused(str(head.get("error")))
        return Frame(kind, head, body)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._socket.close()

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise WireError("the connection ended")
            view = view[count:]


def keep_alive(connection: socket.socket) -> None:
    """A peer whose machine has gone without a word is noticed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

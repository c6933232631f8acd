"""Whatever comes to a parameter server's port: it serves on, its memory does not grow, its log says what it closed and why."""

from __future__ import annotations

import gc
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.distributed.parameter_server import KEY, Running, Worker, run_until_finished
from zenspeed.parallel.mesh import world
from zenspeed.recipe import OptimConfig
from zenspeed.server.wire import HEADER, MAGIC, NONCE_BYTES, Kind, pack, prove

ADAMW = OptimConfig(name="adamw", lr=3e-3)
MESSAGES = 10_000


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with world():
        yield


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "server", authenticate_seconds=0.5, message_seconds=0.5)
    yield running
    running.crash()


def dial(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def authenticated(server: Running) -> socket.socket:
    connection = dial(server)
    theirs = connection.recv(len(MAGIC) + NONCE_BYTES, socket.MSG_WAITALL)[len(MAGIC) :]
    mine = b"n" * NONCE_BYTES
    connection.sendall(mine + prove(KEY, b"worker", theirs, mine))
    assert connection.recv(32, socket.MSG_WAITALL) == prove(KEY, b"server", mine, theirs)
    return connection


def close_hard(connection: socket.socket) -> None:
    """Without the minute in which the port would be kept."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def good_frames() -> list[bytes]:
    push = {"clock": 0, "number": 1, "version": 0, "progress": 0.0, "targets": 4.0, "tokens": 4, "loss": 1.0}
    heads = [
        (Kind.STATUS, {}), (Kind.TAKE, {"have": 0}), (Kind.PULL, {"have": -1, "least": 0}), (Kind.PUSH, push),
        (Kind.JOIN, {"fingerprint": "x"}), (Kind.STATE, {"version": 0}), (Kind.NORM, {"clock": 0, "index": 1, "square": 1.0}),
        (Kind.START, {"spec": {}, "index": 0, "servers": 1}),
    ]  # fmt: skip
    return [pack(kind, head, 0) for kind, head in heads]


def mutated(frame: bytes, draw: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(draw.randint(1, 4)):
        how = draw.randrange(4)
        if how == 0:
            data[draw.randrange(len(data))] = draw.randrange(256)
        elif how == 1:
            del data[draw.randrange(len(data)) :]
        elif how == 2:
            data += draw.randbytes(draw.randint(1, 64))
        else:  # a length far from the truth
            data[8:20] = struct.pack("<IQ", draw.getrandbits(32), draw.getrandbits(draw.choice([8, 32, 64])))
        data = data or bytearray(b"\0")
    return bytes(data)


def test_ten_thousand_hostile_messages(server: Running) -> None:
    """Random bytes and mutated frames, before and after the key was proved."""
    victim = Worker([server.address], {}, ADAMW, 4)
    victim.take()
    draw, frames = random.Random(0), good_frames()
    process, before = psutil.Process(), 0
    connection = authenticated(server)
    for number in range(MESSAGES):
        if number == MESSAGES // 10:
            gc.collect()
            before = process.memory_info().rss
        try:
            if number % 3 == 0:
                stranger = dial(server)
                stranger.sendall(draw.randbytes(draw.randint(1, 200)))
                close_hard(stranger)
            else:
                connection.sendall(mutated(draw.choice(frames), draw))
                connection.setblocking(False)
                connection.recv(1 << 16)
                connection.setblocking(True)
        except BlockingIOError:
            if number % 7 == 0:
                close_hard(connection)
                connection = authenticated(server)
            connection.setblocking(True)
        except OSError:
            connection = authenticated(server)
    close_hard(connection)
    gc.collect()
    assert process.memory_info().rss - before < 16 << 20
    victim.push()
    run_until_finished([victim])
    assert len(server.losses) == 4 and all(loss < 5 for loss in server.losses)
    assert sum(server.server.complaints.kinds.values()) > MESSAGES / 10
    assert len(server.said) < 300 and any("closed" in line for line in server.said)
    assert torch.isfinite(victim.weights()).all()


def test_half_open_connections_are_ended(server: Running) -> None:
    """Two hundred that say nothing, and some that stop inside a frame; a worker that comes then is served."""
    idle = [dial(server) for _ in range(200)]
    halves = [authenticated(server) for _ in range(20)]
    for connection in halves:
        connection.sendall(HEADER.pack(MAGIC, Kind.TAKE, 0, 100, 0) + b'{"have"')
    worker = Worker([server.address], {}, ADAMW, 2)
    run_until_finished([worker])
    for connection in (*idle, *halves):
        while connection.recv(1 << 12):  # until the server ends it
            pass
        connection.close()
    until = time.monotonic() + 10
    while len(server.server._tasks) > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(server.server._tasks) == 1  # the worker's
    assert any("sent nothing, or not all of a frame" in line for line in server.said)


def test_a_length_is_not_believed(server: Running) -> None:
    """Terabytes that a header speaks of are refused before they are allocated, also before there is a run."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in (1 << 39, 1 << 63):
        connection = authenticated(server)
        connection.sendall(HEADER.pack(MAGIC, Kind.START, 0, 0, body))
        assert connection.recv(1) == b""
        connection.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    worker = Worker([server.address], {}, ADAMW, 1)
    run_until_finished([worker])

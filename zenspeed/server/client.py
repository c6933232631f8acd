"""A worker's connections to all servers. A server that goes away is waited for: what was asked is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zenspeed.errors import InputError
from zenspeed.server.wire import EMPTY, Connection, Frame, Kind, Refused, WireError

RETRY_SECONDS = 60.0
MAX_BODY = 1 << 40
MIN_KEY_BYTES = 16


def read_key(path: Path) -> bytes:
    """The secret in a file.

    Raises:
        InputError: no such file, or too short to be a secret.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"{path}: the key cannot be read: {error.strerror}; make one: openssl rand -hex 32 > {path}") from None
    if len(key) < MIN_KEY_BYTES:
        raise InputError(f"{path}: a key has at least {MIN_KEY_BYTES} bytes, not {len(key)}: openssl rand -hex 32 > {path}")
    return key


def parse_address(text: str) -> tuple[str, int]:
    """host:port; raises InputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"parallel.server.addresses: {text!r} is not host:port, such as 10.0.0.1:7000")
    return host.strip("[]"), int(port)


class Link:
    """One server, reached again when it was lost. Blocking; one question at a time."""

    def __init__(self, address: tuple[str, int], key: bytes, retry_seconds: float = RETRY_SECONDS) -> None:
        self.address, self.key, self.retry_seconds = address, key, retry_seconds
        self.number: int | None = None
        self.hello: dict[str, Any] | None = None  # said first on every connection
        self.reconnects = 0
        self._connection: Connection | None = None
        self._moved = 0

    @property
    def moved(self) -> int:
        """Bytes sent and received so far."""
        return self._moved + (self._connection.moved if self._connection is not None else 0)

    def ask(self, kind: Kind, head: Mapping[str, Any], body: Tensor = EMPTY, sent: Callable[[], None] = lambda: None) -> Frame:
        """Sends a frame and gives the answer; `sent` is called when the frame is on its way.

        Raises:
            Refused: the server says no.
            InputError: it could not be reached for `retry_seconds`.
        """
        return self.ask_all([(kind, head, body)], sent)[0]

    def ask_all(
        self, questions: Sequence[tuple[Kind, Mapping[str, Any], Tensor]], sent: Callable[[], None] = lambda: None
    ) -> list[Frame]:
        """Several questions at once, so that the way to the server and back is waited for once."""
        until = time.monotonic() + self.retry_seconds
        while True:
            try:
                connection = self._connect()
                for kind, head, body in questions:
                    connection.send(kind, head, body)
                sent()
                return [connection.receive(MAX_BODY) for _ in questions]
            except (OSError, WireError) as error:
                self.close()
                if time.monotonic() > until:
                    host, port = self.address
                    raise InputError(
                        f"{host}:{port}: no parameter server for {self.retry_seconds:.0f} s ({error}); is it running there?"
                    ) from None
                time.sleep(0.1)

    def _connect(self) -> Connection:
        if self._connection is None:
            connection = Connection(self.address, self.key)
            if self.hello is not None:
                connection.send(Kind.HELLO, self.hello | {"number": self.number})
                answer = connection.receive(MAX_BODY).head
                self.reconnects += self.number is not None
                self.number, self.welcome = answer["number"], answer
            self._connection = connection
        return self._connection

    welcome: Mapping[str, Any] = {}
    """The answer to the last hello."""

    def join(self, name: str, number: int | None) -> Mapping[str, Any]:
        """Says hello, now and after every loss of the connection."""
        self.hello, self.number = {"name": name[:200], "leads": False}, number
        self.ask(Kind.STATUS, {})
        return self.welcome

    def close(self) -> None:
        if self._connection is not None:
            self._moved += self._connection.moved
            self._connection.close()
            self._connection = None


class Peer:
    """Server 0, as another server reaches it without standing still meanwhile."""

    def __init__(self, address: tuple[str, int], key: bytes) -> None:
        self._link, self._lock = Link(address, key), threading.Lock()

    async def ask(self, kind: Kind, head: Mapping[str, Any]) -> dict[str, Any]:
        def asked() -> dict[str, Any]:
            with self._lock:
                return self._link.ask(kind, head).head

        return await asyncio.to_thread(asked)

    def close(self) -> None:
        self._link.close()


class Servers:
    """All servers of a run, the first of which gives out shares."""

    def __init__(self, addresses: Sequence[str], key: bytes, name: str = "", retry_seconds: float = RETRY_SECONDS) -> None:
        self.links = [Link(parse_address(address), key, retry_seconds) for address in addresses]
        self._beside: list[Link] = []
        try:
            welcome = self.links[0].join(name, None)
            self.number, self.started = int(welcome["number"]), bool(welcome["started"])
            for link in self.links[1:]:
                link.join(name, self.number)
        except Refused as refusal:
            raise InputError(f"{addresses[0]}: {refusal}") from None

    @property
    def moved(self) -> int:
        return sum(link.moved for link in (*self.links, *self._beside))

    def beside(self) -> list[Link]:
        """Second connections to all servers, for what goes on while the first ones wait for an answer."""
        self._beside = [Link(link.address, link.key, link.retry_seconds) for link in self.links]
        return self._beside

    @property
    def compute_dtype(self) -> str:
        """Of the run that was started."""
        return str(self.links[0].ask(Kind.STATUS, {}).head["compute_dtype"])

    def wait_until_started(self) -> None:
        """Returns when a worker with a lower number has started the run, or this is the one to do it."""
        while not self.started:
            status = self.links[0].ask(Kind.STATUS, {}).head
            self.started = status["started"]
            if status["lead"] and not self.started:
                return
            time.sleep(0.05)

    def wait_until_over(self) -> bool:
        """When all updates are made: True if it is this worker that has to finish the run, False when it is finished."""
        while True:
            status = self.links[0].ask(Kind.STATUS, {}).head
            if status["lead"] or status["over"]:
                return bool(status["lead"])
            time.sleep(0.1)

    def leads(self, yes: bool) -> None:
        """What is to be said after a loss of the connection."""
        for link in self.links:
            if link.hello is not None:
                link.hello["leads"] = yes

    def close(self, *, stop_servers: bool = False) -> None:
        """Ends this worker's stay; with `stop_servers` theirs as well."""
        for link in self._beside:
            link.retry_seconds = 0.0
            link.close()
        for link in reversed(self.links):
            with contextlib.suppress(InputError, Refused):
                link.retry_seconds = 1.0
                link.ask(Kind.STOP, {"servers": stop_servers})
            link.close()

"""Who may ask, and how much: API keys, requests a minute, requests at a time."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from zenspeed.config import read_text
from zenspeed.errors import InputError

_CLIENTS = 10_000  # remembered at most; the longest silent is forgotten


class Limits(NamedTuple):
    """What one server allows."""

    body_bytes: int = 2**20
    """Of a request."""
    body_seconds: float = 30.0
    """Until a request has come whole."""
    requests_a_minute: int = 600
    """Of one client; 0: any number."""
    at_a_time: int = 64
    """Requests of one client under way."""
    in_all: int = 512
    """Requests of all clients under way."""
    choices: int = 16
    """`n`, and texts or prompts of one request are at most `inputs`."""
    inputs: int = 256


class TooMany(Exception):
    """A limit is reached; `seconds` until it is worth asking again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class Keys:
    """API keys of a file: a line is `key`, or `name key`; # begins a comment.

    Raises:
        InputError: none in it, or one of less than 16 characters.
    """

    def __init__(self, path: Path) -> None:
        self._keys: dict[str, bytes] = {}
        for number, line in enumerate(read_text(path).splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) > 2 or len(words[-1]) < 16:
                raise InputError(f"{path}:{number}: a line is `key` or `name key`, and a key has at least 16 characters")
            self._keys[words[0] if len(words) == 2 else f"key {number}"] = words[-1].encode()
        if not self._keys:
            raise InputError(f"{path}: holds no key; write one, such as the output of: openssl rand -hex 24")

    def owner(self, given: str | None) -> str | None:
        """Whose key it is; takes the same time for each, right or wrong."""
        found = None
        for name, key in self._keys.items():
            if hmac.compare_digest(key, (given or "").encode("utf-8", "replace")):
                found = name
        return found


class Gatekeeper:
    """Counts the requests of each client: a bucket that fills by the minute, and how many are under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._running: dict[str, int] = {}
        self.total = 0

    def enter(self, client: str) -> None:
        """Counts a request in.

        Raises:
            TooMany: one of the limits is reached; nothing is counted then.
        """
        limits, now = self._limits, time.monotonic()
        if self.total >= limits.in_all:
            raise TooMany(f"the server is answering {self.total} requests, which is all it takes", 1)
        if self._running.get(client, 0) >= limits.at_a_time:
            raise TooMany(f"{limits.at_a_time} of your requests are under way, which is all one client may have", 1)
        if limits.requests_a_minute:
            level, then = self._buckets.pop(client, (float(limits.requests_a_minute), now))
            level = min(float(limits.requests_a_minute), level + (now - then) * limits.requests_a_minute / 60)
            self._buckets[client] = (level - 1, now) if level >= 1 else (level, now)
            if len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
            if level < 1:
                seconds = max(1, round((1 - level) * 60 / limits.requests_a_minute))
                raise TooMany(f"more than {limits.requests_a_minute} requests a minute", seconds)
        self._running[client] = self._running.get(client, 0) + 1
        self.total += 1

    def leave(self, client: str) -> None:
        self.total -= 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

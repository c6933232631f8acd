"""Who is connected to a server: workers by number, which of them leads, and who was sent away for what it said."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from zenspeed.server.messages import Hello
from zenspeed.server.wire import Stream

LEAD_RETURNS_SECONDS = 5.0
"""After a server came back, until another worker may lead than the one that did."""


class Complaints:
    """Says what is wrong with connections, at most `most` lines in ten seconds; the rest is counted."""

    def __init__(self, say: Callable[[str], None], most: int = 5) -> None:
        self._say, self._most = say, most
        self._began, self._said = 0.0, 0
        self.kinds: Counter[str] = Counter()

    def add(self, peer: str, what: str) -> None:
        now = time.monotonic()
        self.kinds[what.split(" ")[0]] += 1
        if now - self._began > 10:
            if self._said > self._most:
                self._say(f"and {self._said - self._most} more connections that were closed for what they sent")
            self._began, self._said = now, 0
        self._said += 1
        if self._said <= self._most:
            self._say(f"{peer}: {what}; closed")


class Member:
    """Who is at the other end of a connection."""

    number: int | None = None


class Crew:
    """The workers that are here."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.stopping = False
        """A worker has said that the run is over."""
        self._next_number = 0
        self._lead: int | None = None
        self._lead_returns_until = 0.0

    def __len__(self) -> int:
        return len(self.streams)

    def join(self, member: Member, hello: Hello, stream: Stream) -> int:
        """Gives a new worker a number, or back the one that it had."""
        number = hello.number if hello.number is not None else self._next_number
        while number in self.streams and hello.number is None:
            number += 1
        member.number = number
        self._next_number = max(self._next_number, number + 1) if hello.number is None else self._next_number
        self.streams[number] = stream
        if hello.leads and self._lead not in self.streams:
            self._lead = number
        return number

    def leave(self, member: Member, stream: Stream) -> int | None:
        """The number of the worker that this connection was of; None: of none, or it has another one by now."""
        if member.number is None or self.streams.get(member.number) is not stream:
            return None
        del self.streams[member.number]
        return member.number

    def leads(self, member: Member) -> bool:
        """One worker writes metrics and checkpoints and evaluates: the first, and when it has gone the next."""
        if self._lead not in self.streams and self.streams and time.monotonic() > self._lead_returns_until:
            self._lead = min(self.streams)
        return member.number is not None and member.number == self._lead and not self.stopping

    def come_back(self) -> None:
        """After a crash of this server: those that were here come back with their own numbers, and one of them led."""
        self._next_number = 1000
        self._lead_returns_until = time.monotonic() + LEAD_RETURNS_SECONDS

"""Models by name, each with a version that answers and perhaps a candidate that takes a share of the requests.

swap: load beside the old ─ parity gate ─ share of the traffic ─┬─ takes over; the old one ends when its answers have
                                                                └─ rolled back: failed to load, or errs too often
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from zenspeed.errors import InputError
from zenspeed.serve.process import Gone
from zenspeed.serve.shapes import Problem

TRIAL = 50
"""Answers that a candidate gives well before it takes over."""
ROLL_BACK = 0.1
"""Share of failures among a candidate's answers, beyond that of the current version, at which it is taken away."""
_FEWEST = 3  # failures before a share of them means anything


class Backend(Protocol):
    """A version: a `WorkerProcess`, or the same within a process."""

    folder: Path
    state: Any
    info: dict[str, Any]
    message: str
    restarts: int
    running: int

    @property
    def pid(self) -> int | None: ...
    def start(self) -> None: ...
    async def wait_ready(self) -> None: ...
    async def stop(self, seconds: float = 5.0) -> None: ...
    def ask(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]: ...


class Version:
    """A backend with the record of its answers."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.answers = self.failures = 0

    def record(self, good: bool) -> None:
        self.answers += 1
        self.failures += not good

    def describe(self) -> dict[str, Any]:
        b = self.backend
        return {
            "folder": b.folder.name, "state": b.state, "answers": self.answers, "failures": self.failures,
            "restarts": b.restarts, "message": b.message, "gate": b.info.get("gate", {}),
        }  # fmt: skip


class Served:
    """One name and what answers under it."""

    def __init__(self, name: str, backend: Backend, new: Callable[[Path], Backend], drain_seconds: float = 60.0) -> None:
        self.name, self.created = name, int(time.time())
        self.current = Version(backend)
        self.candidate: Version | None = None
        self.share = 0.0
        self.history: deque[str] = deque(maxlen=50)
        self._new, self._drain = new, drain_seconds
        self._draws = random.Random(0)
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> dict[str, Any]:
        return self.current.backend.info

    @property
    def ready(self) -> bool:
        return self.current.backend.state == "ready"

    async def ask(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Events of a request, from the version that its turn falls on.

        A version that ends before its first event costs nothing if another can answer.

        Raises:
            Gone: no version answers.
        """
        tried: list[Version] = []
        while (version := self._pick(tried)) is not None:
            tried.append(version)
            begun, good = False, True
            try:
                async with aclosing(version.backend.ask(message)) as events:
                    async for event in events:
                        begun = True
                        good = good and not (event["event"] == "error" and event["kind"] == "server")
                        good = good and event.get("reason") != "error"
                        yield event
                self._record(version, good)
                return
            except Gone:
                self._record(version, False)
                if begun:
                    raise
        raise Gone

    def _pick(self, tried: list[Version]) -> Version | None:
        candidate = self.candidate
        usable = [v for v in (self.current, candidate) if v is not None and v.backend.state == "ready" and v not in tried]
        if len(usable) == 2:
            return candidate if self._draws.random() < self.share else self.current
        return usable[0] if usable else None

    async def swap(self, folder: Path, share: float | None = None) -> None:
        """Loads `folder` beside the current version; with `share` it has to prove itself first. Returns when it is loaded.

        Raises:
            InputError: it cannot be loaded, or does not answer as it was trained; the current version goes on.
        """
        if self.candidate is not None:
            raise InputError(f"{self.name}: {self.candidate.backend.folder.name} is on trial; wait, or roll it back")
        backend = self._new(folder)
        self.candidate, self.share = Version(backend), 0.0
        backend.start()
        await backend.wait_ready()
        if backend.state != "ready":
            self.roll_back(f"not loaded: {backend.message}")
            raise InputError(f"{folder.name}: {backend.message}")
        if backend.info["endpoints"] != self.info.get("endpoints"):
            self.roll_back("it answers other endpoints")
            raise InputError(f"{folder.name}: answers {', '.join(backend.info['endpoints'])}, which {self.name} does not")
        if share is None:
            self.take_over()
        else:
            self.share = share
            self.history.append(f"{folder.name}: on trial with {share:.0%} of the requests")

    def take_over(self) -> None:
        """The candidate becomes the current version; the old one ends when its last answer has."""
        assert self.candidate is not None
        old, self.current, self.candidate, self.share = self.current, self.candidate, None, 0.0
        self.history.append(f"{self.current.backend.folder.name}: took over from {old.backend.folder.name}")
        self._retire(old)

    def roll_back(self, why: str) -> None:
        """Takes the candidate away."""
        assert self.candidate is not None
        version, self.candidate, self.share = self.candidate, None, 0.0
        self.history.append(f"{version.backend.folder.name}: rolled back: {why}")
        self._retire(version)

    def _record(self, version: Version, good: bool) -> None:
        version.record(good)
        if version is not self.candidate or not self.share:
            return
        usual = self.current.failures / max(1, self.current.answers)
        if version.failures >= _FEWEST and version.failures / version.answers > usual + ROLL_BACK:
            self.roll_back(f"{version.failures} of {version.answers} answers failed")
        elif version.answers - version.failures >= TRIAL:
            self.take_over()

    def _retire(self, version: Version) -> None:
        task = asyncio.get_running_loop().create_task(self._end(version))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, version: Version) -> None:
        until = time.monotonic() + self._drain
        while version.backend.running and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await version.backend.stop()

    async def stop(self) -> None:
        versions = [v for v in (self.current, self.candidate) if v is not None]
        await asyncio.gather(*(v.backend.stop() for v in versions), *self._retiring)

    def describe(self) -> dict[str, Any]:
        return {
            "current": self.current.describe(), "candidate": None if self.candidate is None else self.candidate.describe(),
            "share": self.share, "history": list(self.history),
        }  # fmt: skip


class Models:
    """The models of one server by name."""

    def __init__(self, served: list[Served]) -> None:
        self.by_name = {s.name: s for s in served}

    def find(self, name: str, endpoint: str) -> Served:
        """The model `name`, which must answer `endpoint`.

        Raises:
            Problem: no such model, or it does not; lists those that do.
        """
        found = self.by_name.get(name)
        if found is None:
            raise Problem(404, f"no such model; there are: {', '.join(self.by_name)}", param="model", code="model_not_found")
        if found.ready and endpoint not in found.info["endpoints"]:
            can = [s.name for s in self.by_name.values() if endpoint in s.info.get("endpoints", ())]
            raise Problem(400, f"{name} has no answer to {endpoint}: it answers {', '.join(found.info['endpoints'])}; models "
                f"that do: {', '.join(can) or 'none here'}", param="model", code="wrong_endpoint")  # fmt: skip
        if not found.ready and found.current.backend.state == "failed":
            raise Problem(503, f"{name} could not be loaded", code="model_not_ready", retry_after=60)
        return found

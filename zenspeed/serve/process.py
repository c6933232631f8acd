"""From the server's side: a worker process, its messages as events, its death and its restart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

State = Literal["starting", "ready", "failed", "restarting", "stopped"]
_LINE = 64 * 2**20
_BACK_OFF = (0.2, 1.0, 3.0, 10.0)
"""Seconds before the first, second … restart in a row."""


class Gone(Exception):
    """The worker ended before the answer was complete."""


async def only(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The one event of a request that has but one.

    Raises:
        Gone: there is none.
    """
    async with aclosing(events):
        async for event in events:
            return event
    raise Gone


class WorkerProcess:
    """One version of a model.

    Args:
        changed: called when the state changes.
    """

    def __init__(self, folder: Path, options: dict[str, Any], changed: Callable[[], None] = lambda: None) -> None:
        self.folder, self._options, self._changed = folder, options, changed
        self.state: State = "starting"
        self.info: dict[str, Any] = {}
        self.message = ""
        """Why it failed."""
        self.restarts = 0
        self.running = 0
        """Requests under way."""
        self._waiting: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> None:
        """Until it is ready, or has failed."""
        await self._ready.wait()

    async def stop(self, seconds: float = 5.0) -> None:
        """Ends the process; what is under way ends with it."""
        self.state = "stopped"
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                try:
                    await asyncio.wait_for(self._process.wait(), seconds)
                except TimeoutError:
                    self._process.kill()
        if self._task is not None:
            await self._task

    async def ask(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Events of one request. Leaving the iteration early cancels it there.

        Raises:
            Gone: the worker is not there, or ends.
        """
        if self.state != "ready" or self._writer is None:
            raise Gone
        key, events = f"r{next(self._numbers)}", asyncio.Queue[dict[str, Any]]()
        self._waiting[key] = events
        self.running += 1
        left, done = message.get("n", 1), False
        try:
            await self._send({"id": key, **message})
            while not done:
                event = await events.get()
                kind = event["event"]
                if kind == "gone":
                    done = True
                    raise Gone
                left -= kind == "end"
                done = kind in ("result", "error") or left == 0
                yield event
        finally:
            del self._waiting[key]
            self.running -= 1
            if not done and self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.write(_line({"id": key, "op": "cancel"}))

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        try:
            self._writer.write(_line(message))
            await self._writer.drain()
        except OSError:
            raise Gone from None

    async def _supervise(self) -> None:
        failures = 0
        while self.state != "stopped":
            was_ready = await self._run_once()
            if self.state in ("stopped", "failed"):
                break
            if not was_ready and self.restarts == 0:
                self._become("failed", self.message or "the process ended while it was loading the model")
                break
            failures = 0 if was_ready else failures + 1
            self.restarts += 1
            self._become("restarting", "")
            await asyncio.sleep(_BACK_OFF[min(failures, len(_BACK_OFF) - 1)])
        self._ready.set()

    async def _run_once(self) -> bool:
        """One life of the process; whether it became ready."""
        here, there = socket.socketpair()
        try:
            environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "zenspeed.serve.worker", str(there.fileno()), pass_fds=(there.fileno(),), env=environment,
                start_new_session=True,  # Ctrl-C is for the server, which lets answers end
            )  # fmt: skip
        finally:
            there.close()
        reader, self._writer = await asyncio.open_connection(sock=here, limit=_LINE)
        self._writer.write(_line({"folder": str(self.folder), "options": self._options}))
        ready = False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                ready = self._receive(json.loads(line)) or ready
        self._writer.close()
        self._writer = None
        if self._process.returncode is None and self.state != "stopped":
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        if self.state == "ready":
            self._become("restarting", "")
        for events in self._waiting.values():
            events.put_nowait({"event": "gone"})
        return ready

    def _receive(self, event: dict[str, Any]) -> bool:
        kind = event["event"]
        if kind in ("ready", "info"):
            self.info = {k: v for k, v in event.items() if k != "event"}
            if kind == "ready" and self.state != "stopped":
                self._become("ready", "")
                self._ready.set()
        elif kind == "failed":
            self._become("failed", event["message"])
            self._ready.set()
        elif event["id"] in self._waiting:
            self._waiting[event["id"]].put_nowait(event)
        return kind == "ready"

    def _become(self, state: State, message: str) -> None:
        self.state, self.message = state, message
        self._changed()


def _line(message: dict[str, Any]) -> bytes:
    return (json.dumps(message) + "\n").encode()  # ASCII: whatever a text holds, a line is a line

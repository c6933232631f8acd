"""A version of a model inside the test's own process: the same `Worker`, without a process around it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from zenspeed.errors import InputError
from zenspeed.serve.opened import open_model
from zenspeed.serve.process import Gone
from zenspeed.serve.worker import Worker

OPTIONS: dict[str, Any] = {
    "weights": "fp32", "max_streams": 8, "max_queue": 16, "max_tokens": 2048, "threads": 1, "kernel": False, "seconds": 30.0,
    "cache": str(Path.home() / ".cache" / "zenspeed" / "kernels"),
}  # fmt: skip


class LocalBackend:
    """`deploy.Backend` over a worker in this process. `fail`: every answer is then an error."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self._options = folder, {**OPTIONS, **options}
        self.state, self.message, self.info, self.restarts, self.running = "starting", "", {}, 0, 0
        self.fail = self.gone = False
        self.pid = None
        self.worker: Worker | None = None
        self._events: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._numbers = itertools.count()

    def start(self) -> None:
        loop = asyncio.get_running_loop()

        def give(event: dict[str, Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._receive, event)

        try:
            self.worker = Worker(open_model(self.folder), self._options, give)
            self.state, self.info = "ready", self.worker.info
        except InputError as error:
            self.state, self.message = "failed", str(error)

    def _receive(self, event: dict[str, Any]) -> None:
        if event.get("id") in self._events:
            self._events[event["id"]].put_nowait(event)

    async def wait_ready(self) -> None:
        pass

    async def stop(self, seconds: float = 5.0) -> None:
        self.state = "stopped"
        if self.worker is not None:
            self.worker.close()

    async def ask(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if self.gone or self.worker is None:
            raise Gone
        if self.fail:
            yield {"event": "error", "kind": "server", "message": "made to fail"}
            return
        key, events = f"r{next(self._numbers)}", asyncio.Queue[dict[str, Any]]()
        self._events[key] = events
        self.running += 1
        left, done = message.get("n", 1), False
        try:
            self.worker.handle({"id": key, **message})
            while not done:
                event = await events.get()
                left -= event["event"] == "end"
                done = event["event"] in ("result", "error") or left == 0
                yield event
        finally:
            del self._events[key]
            self.running -= 1
            if not done:
                self.worker.handle({"id": key, "op": "cancel"})

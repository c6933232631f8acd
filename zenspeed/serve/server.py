"""Runs the server: models from folders, uvicorn, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zenspeed.errors import InputError
from zenspeed.serve.deploy import Models, Served
from zenspeed.serve.http import Settings, create_app
from zenspeed.serve.limits import Keys, Limits
from zenspeed.serve.process import WorkerProcess

_HEADER_SECONDS = 20.0
log = logging.getLogger("zenspeed.serve")


class Plan(NamedTuple):
    """What the command line asks for."""

    folders: list[tuple[str, Path]]
    host: str
    port: int
    share: float | None
    options: dict[str, Any]
    limits: Limits
    keys: Keys | None
    admin: Keys | None
    versions: Path | None
    page: bool
    log_prompts: bool
    drain_seconds: float


def serve_forever(plan: Plan) -> int:
    """Serves until SIGTERM or Ctrl-C, then lets answers end; the exit code.

    Raises:
        InputError: a name given twice without --canary, the port is taken, the model cannot be served.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    served, candidates = _serve_plan(plan)
    app = create_app(Models(served), Settings(plan.limits, plan.keys, plan.admin, plan.versions, plan.page, plan.log_prompts))
    listener = _listen(plan.host, plan.port)
    config = uvicorn.Config(
        app, http=_Protocol, ws="none", log_config=None, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=int(plan.drain_seconds), backlog=512,
    )  # fmt: skip
    server = _Server(config)
    _say_where(plan, listener)
    return asyncio.run(_run(server, listener, served, candidates, plan))


async def _run(
    server: uvicorn.Server, listener: socket.socket, served: list[Served], candidates: list[tuple[Served, Path]], plan: Plan
) -> int:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(_load(served, candidates, plan))
    await asyncio.wait([serving, loading], return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is not None:
        server.should_exit = True
        await serving
        raise loading.exception() or AssertionError
    await serving
    loading.cancel()
    return 0


async def _load(served: list[Served], candidates: list[tuple[Served, Path]], plan: Plan) -> None:
    """Waits for the models and says how they were checked."""
    while any(s.current.backend.state == "starting" and s.current.backend.pid is None for s in served):
        await asyncio.sleep(0.01)
    for s in served:
        await s.current.backend.wait_ready()
        if s.current.backend.state == "failed":
            raise InputError(f"{s.name}: {s.current.backend.message}")
        gate = s.info["gate"]
        checked = f"; logits within {gate['worst_logit']:.1e} of the trained model's" if "worst_logit" in gate else ""
        print(f"{s.name}: answers {', '.join(s.info['endpoints'])}{checked}", flush=True)
    for s, folder in candidates:
        await s.swap(folder, plan.share)
        print(f"{s.name}: {folder} is on trial", flush=True)


def _serve_plan(plan: Plan) -> tuple[list[Served], list[tuple[Served, Path]]]:
    by_name: dict[str, Served] = {}
    candidates = []
    for name, folder in plan.folders:
        if name not in by_name:
            by_name[name] = Served(name, WorkerProcess(folder, plan.options), lambda f: WorkerProcess(f, plan.options))
        elif plan.share is not None:
            candidates.append((by_name[name], folder))
        else:
            raise InputError(f"{name}: two folders of one name; give NAME=FOLDER, or --canary 10% to try the second")
    if plan.share is not None and not candidates:
        raise InputError("--canary: needs a second folder of the same name: NAME=OLD NAME=NEW")
    return list(by_name.values()), candidates


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise InputError(f"--port {port} of {host}: {error.strerror}; give another with --port") from None
    return listener


def _say_where(plan: Plan, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    who = "only from this machine; --host 0.0.0.0 for others" if local else "from any machine that reaches it"
    key = "with an API key" if plan.keys else "without a key" + ("" if local else ": give --api-key-file")
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{place}  ({who}; {key})\n{place}/docs" + (f"\n{place}/  the page" if plan.page else ""), flush=True)


class _Server(uvicorn.Server):
    """Ends with the exit code of an orderly end; uvicorn's would raise the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class _Protocol(H11Protocol):
    """A connection on which no request's head has come after 20 s is closed; uvicorn itself would keep it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEADER_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

"""Before a request reaches an endpoint: its size, its time, its key, its client's share. Plain ASGI, for it must not buffer.

Errors have OpenAI's form. Nothing of a body is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from zenspeed.serve.limits import Gatekeeper, Keys, Limits, TooMany
from zenspeed.serve.metrics import Metrics
from zenspeed.serve.shapes import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_THROWN_SECONDS, _THROWN_BYTES = 2.0, 2**26
log = logging.getLogger("zenspeed.serve")
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store")]


class Guard:
    """ASGI middleware.

    Args:
        keys: of `/v1`; None: none needed. admin: of `/admin`; None: there is no such place.
    """

    def __init__(self, app: App, limits: Limits, keys: Keys | None, admin: Keys | None, metrics: Metrics) -> None:
        self._app, self._limits, self._keys, self._admin, self._metrics = app, limits, keys, admin, metrics
        self._gate = Gatekeeper(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, begun, status = str(scope["path"]), time.monotonic(), 0
        body = _Body(self._limits, scope, receive)

        refusing = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if body.refused and not status and not refusing:  # the framework calls it a body that cannot be parsed
                return
            if message["type"] == "http.response.start":
                await body.finish()
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        entered = None
        try:
            client = self._client(scope, path)
            scope.setdefault("state", {})["client"] = client
            if path.startswith("/v1/") and scope["method"] == "POST":
                self._gate.enter(client)
                entered = client
            if body.refused is None:
                await self._app(scope, body.receive, sending)
            if body.refused is not None and not status:
                raise body.refused
        except TooMany as error:
            refusing = True
            problem = Problem(429, str(error), code="rate_limit_exceeded", retry_after=error.seconds)
            await answer_problem(problem, sending)
        except Problem as problem:
            if status:  # the answer has begun: there is no other way to say it than to break off
                raise
            refusing = True
            await answer_problem(problem, sending)
        finally:
            if entered is not None:
                self._gate.leave(entered)
            seconds = time.monotonic() - begun
            self._metrics.request(path, status, seconds)
            log.info("%s %s %d %.0f ms", scope["method"], path[:100].encode("unicode_escape").decode(), status, 1000 * seconds)

    def _client(self, scope: Scope, path: str) -> str:
        """Who asks: the owner of the key, else the address."""
        keys = self._admin if path.startswith("/admin/") else self._keys if path.startswith("/v1/") else None
        if path.startswith("/admin/") and keys is None:
            raise Problem(404, "there is nothing here: the server was started without --admin-key-file")
        if keys is None:
            return str((scope.get("client") or ("unknown",))[0])
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"authorization"), "")
        kind, _, key = given.partition(" ")
        owner = keys.owner(key.strip() if kind.lower() == "bearer" else None)
        if owner is None:
            raise Problem(401, "no or a wrong API key; send it as: Authorization: Bearer KEY", code="invalid_api_key")
        return owner


class _Body:
    """The body of a request, refused when it is too long or comes too slowly."""

    def __init__(self, limits: Limits, scope: Scope, receive: Receive) -> None:
        self._limits, self._receive, self._total = limits, receive, 0
        self._reading = asyncio.Lock()  # an answer may wait for the client to leave before the request has been read
        self._until = time.monotonic() + limits.body_seconds
        self.whole = False
        self.refused: Problem | None = None
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared[:20]) > limits.body_bytes:
            self.refused = _too_long(limits.body_bytes)

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's receive.

        Raises:
            Problem: it is refused, which `refused` holds then.
        """
        async with self._reading:
            if not self.whole:
                return await self._next()
        return await self._receive()

    async def _next(self) -> MutableMapping[str, Any]:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.01, self._until - time.monotonic()))
        except TimeoutError:
            self.refused = Problem(408, f"the request did not come whole within {self._limits.body_seconds:g} s")
            raise self.refused from None
        self._total += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self._total > self._limits.body_bytes:
            self.refused = _too_long(self._limits.body_bytes)
            raise self.refused
        return message

    async def finish(self) -> None:
        """Reads what nobody asked for: an answer that comes before the end of the request may be lost with the connection."""
        with contextlib.suppress(Problem):
            async with self._reading:
                while not self.whole and self.refused is None:
                    await self._next()
        if self.refused is not None and self.refused.status == 413:
            await self._throw_away()

    async def _throw_away(self) -> None:
        """What is still coming of a body that is too long, for a moment: many clients read no answer before all is sent."""
        until, left = time.monotonic() + _THROWN_SECONDS, _THROWN_BYTES
        with contextlib.suppress(TimeoutError):
            while not self.whole and left > 0:
                message = await asyncio.wait_for(self._receive(), max(0.01, until - time.monotonic()))
                left -= len(message.get("body", b""))
                self.whole = not message.get("more_body", False)


def _too_long(most: int) -> Problem:
    return Problem(413, f"the request has more than {most:,} bytes", code="request_too_large")


async def answer_problem(problem: Problem, send: Send) -> None:
    """Sends `problem` as a whole answer."""
    body = json.dumps(problem.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if problem.retry_after is not None:
        headers.append((b"retry-after", str(problem.retry_after).encode()))
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if problem.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Fragments that travel while the worker computes (Streaming DiLoCo, Douillard et al. 2501.18512, algorithm 2).

    updates     ….|───────── share of clock c + 1 ─────────|….
    fragment      └► pushed ► averaged, outer step ► pulled ─┐
                              ◄─────── overlap_steps (τ) ───►│ own ← α · own + (1 − α) · averaged

A worker that has brought a share takes the next one at once and goes on from its own weights. What it sent is a fragment's
delta from the weights that the servers last gave; τ updates later it takes in what the servers made of all deltas. How fast the
network was does not matter to what is computed: the averaged fragment is taken in after τ updates, never before.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from zenspeed.engine import Engine
from zenspeed.server.client import Servers
from zenspeed.server.keys import gather, scatter
from zenspeed.server.messages import Spec
from zenspeed.server.replica import Replica, Ticket, ticket_of
from zenspeed.server.wire import Frame, Kind

NO_WEIGHTS = 2**52
"""As the version that this worker has: the answer then brings none."""


class Streaming(Replica):
    """A `Replica` whose fragments travel on connections of their own, served by one thread."""

    def __init__(self, engine: Engine, servers: Servers, spec: Spec) -> None:
        super().__init__(engine, servers, spec)
        self._beside = servers.beside()
        self._courier = ThreadPoolExecutor(1, "zenspeed-courier")
        self._ready: tuple[dict[str, Any], list[Tensor]] | None = None  # made, and not on its way yet
        self._sent: Future[None] | None = None
        self._coming: Future[list[Frame]] | None = None
        self._mine: set[int] = set()  # fragments to which this worker has added since it last took them in
        self._clock = -1  # of the share that was brought last

    def take(self, *, close: bool, progress: float | None, records: int | None) -> Ticket:
        """Waits for a share; weights come beside it, but for the first time."""
        if self.have[0] < 0:
            return super().take(close=close, progress=progress, records=records)
        began = time.perf_counter()
        request = {"have": NO_WEIGHTS, "close": close, "progress": progress, "records": records}
        # The few bytes of the question go first, or they would wait for the fragment on a slow link.
        answer = self.servers.links[0].ask(Kind.TAKE, request, sent=self.send)
        self.waited += time.perf_counter() - began
        ticket = ticket_of(answer.head)
        if ticket.finished:
            self._pull(ticket.version)
            self._take_in()
        elif ticket.clock == self._clock:  # another share of the same update, from the same weights
            self.reset(ticket.clock % self.spec.fragments)
        else:
            self._pull(ticket.clock)
        return ticket

    def push(self, ticket: Ticket, facts: dict[str, Any], version: int) -> None:
        """Makes what is to be brought ready; it is sent beside the next share's updates."""
        self.catch_up(self.spec.steps_per_clock)
        self._ready = self.message(ticket, facts, min(self.have))
        self._mine.add(ticket.clock % self.spec.fragments)
        self._clock = ticket.clock

    def catch_up(self, made: int) -> None:
        if self._coming is not None and made >= self.spec.overlap_steps:
            self._take_in()

    def send(self) -> None:
        """Sends what was made ready, beside all else."""
        ready, self._ready = self._ready, None
        if ready is None:
            return
        if self._sent is not None:
            self._sent.result()

        def send(head: dict[str, Any], bodies: list[Tensor]) -> None:
            for link, body in reversed(list(zip(self._beside, bodies, strict=True))):
                link.ask(Kind.PUSH, head, body)

        self._sent = self._courier.submit(send, *ready)

    def _pull(self, least: int) -> None:
        """Lets the courier bring what the servers have after `least` updates."""
        if min(self.have) >= least:
            return
        have = list(self.have)

        def pull() -> list[Frame]:
            return [link.ask(Kind.PULL, {"have": h, "least": least}) for link, h in zip(self._beside, have, strict=True)]

        self._coming = self._courier.submit(pull)

    def _take_in(self) -> None:
        """Waits for the fragments that are on their way; of those that this worker has worked on it keeps its share."""
        if self._coming is None:
            return
        began = time.perf_counter()
        if self._sent is not None:
            self._sent.result()
        answers, self._coming = self._coming.result(), None
        self.waited += time.perf_counter() - began
        for server, answer in enumerate(answers):
            for fragment, averaged in self.split(server, answer.head, answer.body):
                parameters = self.parts[server][fragment]
                keeps = self.spec.mixing if fragment in self._mine else 0.0
                scatter(averaged + keeps * (gather(parameters) - averaged), parameters)
                self.anchors[server, fragment] = averaged
            self.have[server] = answer.head["version"]
        self._mine.clear()

    def close(self) -> None:
        self._courier.shutdown(wait=False, cancel_futures=True)

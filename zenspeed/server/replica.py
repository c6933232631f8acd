"""A worker's copy of the model: weights come from the servers, what was made of a share goes to them."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zenspeed.checkpoint import Checkpoint
from zenspeed.engine import Engine
from zenspeed.server.client import Servers
from zenspeed.server.compress import Feedback
from zenspeed.server.keys import divide, gather, keys_of, scatter
from zenspeed.server.messages import Spec, Start
from zenspeed.server.wire import Kind, as_bytes


class Ticket(NamedTuple):
    """What a take was answered with; the weights have been written."""

    version: int
    tokens: int
    lead: bool
    finished: bool
    records: list[dict[str, Any]]
    clock: int = 0
    number: int = 0
    progress: float = 1.0


def ticket_of(head: dict[str, Any]) -> Ticket:
    place = {k: head[k] for k in ("clock", "number", "progress") if k in head}
    return Ticket(head["version"], head["tokens"], head["lead"], head.get("finished", False), head.get("records", []), **place)


class Replica:
    """The model of a worker, and what the servers know of it."""

    def __init__(self, engine: Engine, servers: Servers, spec: Spec) -> None:
        self.engine, self.servers, self.spec = engine, servers, spec
        parameters = dict(engine.module.named_parameters())
        self.local = spec.consistency == "local"
        ranges = [divide(keys, spec.fragments) for keys in divide(keys_of(engine.module), len(servers.links))]
        # of each server, of each fragment: its parameters
        self.parts: list[list[list[Tensor]]] = [[[parameters[k.name] for k in f] for f in server] for server in ranges]
        self.have = [-1] * len(servers.links)
        self.anchors: dict[tuple[int, int], Tensor] = {}  # local: weights as the servers last gave them
        self._feedback: dict[tuple[int, int], Feedback] = {}
        self._moved = servers.moved
        self.waited = 0.0

    def start(self, checkpoint: Checkpoint | None) -> int:
        """Joins the run; brings weights and, of a checkpoint, optimizer state where the servers have none yet. Gives the run's
        `Spec.shift`."""
        shift = self.spec.shift
        for index, link in enumerate(self.servers.links):
            joined = link.ask(Kind.JOIN, {"fingerprint": self.spec.fingerprint}).head
            if joined["started"]:
                shift = joined["shift"]
                continue
            states, values, scalars = self._states_of(checkpoint, index)
            weights = gather([p for fragment in self.parts[index] for p in fragment])
            peer = None if index == 0 else self.servers.links[0].address
            guard = checkpoint.state.get("guard", {}) if checkpoint is not None else {}
            start = Start(
                spec=self.spec, index=index, servers=len(self.servers.links), states=states, scalars=scalars, peer=peer,
                losses=guard.get("losses", []), norms=guard.get("norms", []),
            )  # fmt: skip
            link.ask(Kind.START, start.model_dump(mode="json"), as_bytes(torch.cat([weights, *values])))
        if not self.local:
            for optimizer in self.engine.optimizers:
                optimizer.state.clear()  # the servers have it
        return shift

    def _states_of(
        self, checkpoint: Checkpoint | None, index: int
    ) -> tuple[list[tuple[str, str, int]], list[Tensor], dict[str, dict[str, float]]]:
        """Optimizer state of the parameters of server `index`: (parameter, kind, elements), the elements, single numbers."""
        if checkpoint is None:
            return [], [], {}
        names = {key.name for key in divide(keys_of(self.engine.module), len(self.servers.links))[index]}
        states: list[tuple[str, str, int]] = []
        values = []
        for name, kind in sorted(checkpoint.keys()):
            if name in names and kind != "weight":
                size = checkpoint.shapes_of(kind)[name].numel()
                value = checkpoint.read(name, kind, 0, size)
                assert value is not None
                values.append(value.float())
                states.append((name, kind, size))
        return states, values, {n: s for n, s in checkpoint.scalars.items() if n in names}

    # Weights ----------------------------------------------------------------------------------------------------------

    def take(self, *, close: bool, progress: float | None, records: int | None) -> Ticket:
        """Waits for a share and writes the weights that are newer than this worker's."""
        began = time.perf_counter()
        request = {"have": self.have[0], "close": close, "progress": progress, "records": records}
        answer = self.servers.links[0].ask(Kind.TAKE, request)
        self.write(0, answer.head, answer.body)
        for index, link in enumerate(self.servers.links[1:], start=1):
            pulled = link.ask(Kind.PULL, {"have": self.have[index], "least": answer.head["version"]})
            self.write(index, pulled.head, pulled.body)
        self.waited += time.perf_counter() - began
        return ticket_of(answer.head)

    def catch_up(self, made: int) -> None:
        """Called before each local update of a share, when `made` of them are made, and before it is pushed."""

    def write(self, server: int, head: dict[str, Any], body: Tensor) -> None:
        """Makes this worker's weights those of the answer `head`, `body`."""
        for fragment, part in self.split(server, head, body):
            scatter(part, self.parts[server][fragment])
            if self.local:
                self.anchors[server, fragment] = part
        self.have[server] = head["version"]

    def split(self, server: int, head: dict[str, Any], body: Tensor) -> list[tuple[int, Tensor]]:
        """The fragments in an answer."""
        fragments: list[int] = head["fragments"]
        sizes = [sum(p.numel() for p in self.parts[server][f]) for f in fragments]
        return list(zip(fragments, body.view(torch.float32).split(sizes), strict=True)) if fragments else []

    def show_servers_weights(self) -> list[Tensor]:
        """Writes the servers' weights into the module; what was there before."""
        before = [p.detach().clone() for p in self.engine.module.parameters()]
        for (server, fragment), anchor in self.anchors.items():
            scatter(anchor, self.parts[server][fragment])
        return before

    def show(self, weights: list[Tensor]) -> None:
        """Writes weights back that `show_servers_weights` gave."""
        with torch.no_grad():
            for parameter, weight in zip(self.engine.module.parameters(), weights, strict=True):
                parameter.copy_(weight)

    # Shares -----------------------------------------------------------------------------------------------------------

    def push(self, ticket: Ticket, facts: dict[str, Any], version: int) -> None:
        """Brings what was made of a share, to server 0 last: the share is done when that one has it."""
        began = time.perf_counter()
        head, bodies = self.message(ticket, facts, version)
        if self.local:
            self.reset(ticket.clock % self.spec.fragments)
        else:
            self.engine.zero.zero_grad()
        for link, body in reversed(list(zip(self.servers.links, bodies, strict=True))):
            link.ask(Kind.PUSH, head, body)
        self.waited += time.perf_counter() - began

    def message(self, ticket: Ticket, facts: dict[str, Any], version: int) -> tuple[dict[str, Any], list[Tensor]]:
        """Head and, for each server, body of what is made of a share."""
        bodies = [self._body(server, ticket.clock % self.spec.fragments) for server in range(len(self.parts))]
        moved = self.servers.moved
        head = facts | {
            "clock": ticket.clock, "number": ticket.number, "version": version, "progress": ticket.progress,
            "waited": self.waited, "moved": moved - self._moved,
        }  # fmt: skip
        self._moved, self.waited = moved, 0.0
        return head, bodies

    def reset(self, fragment: int) -> None:
        """local: makes a fragment what the servers last gave."""
        for server, fragments in enumerate(self.parts):
            scatter(self.anchors[server, fragment], fragments[fragment])

    def _body(self, server: int, fragment: int) -> Tensor:
        parameters = self.parts[server][fragment]
        if self.local:
            values = (self.anchors[server, fragment] - gather(parameters)) / self.spec.shares
        else:
            values = gather([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
        return self._feedback.setdefault((server, fragment), Feedback(self.spec.compress)).encode(values)

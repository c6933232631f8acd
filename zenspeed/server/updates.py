"""The run as one server holds it: shares come in, updates are made of them, and what was acknowledged is in the journal.

push ─► keep: journal ─► all shares of the clock are there ─► settle: (norms of all servers) ─► apply ─► record
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zenspeed.errors import InputError
from zenspeed.guard import Guard
from zenspeed.parallel.mesh import World, build_mesh
from zenspeed.server.client import Peer
from zenspeed.server.clocks import Clocks, Share
from zenspeed.server.crew import Crew
from zenspeed.server.journal import Journal
from zenspeed.server.keys import Key, divide
from zenspeed.server.messages import Norm, Push, Start
from zenspeed.server.store import Applied, Store
from zenspeed.server.wire import EMPTY, Kind, Refused

RECORDS = 4096  # of updates, kept for the worker that writes metrics


class Updates:
    """Server `index` of several; each makes the updates of its own parameters. Needs a process group of one process."""

    def __init__(
        self, world: World, key: bytes, folder: Path, crew: Crew, say: Callable[[str], None], *, sync: bool = False
    ) -> None:
        self.mesh, self.key, self.crew, self.say = build_mesh(world), key, crew, say
        self.journal = Journal(folder, sync=sync)
        self.store: Store | None = None
        self.clocks: Clocks | None = None
        self.index, self.servers = 0, 1
        self.peer: Peer | None = None
        self.progress = 0.0
        self.tokens = 0
        self.discarded = 0
        self.records: deque[dict[str, Any]] = deque(maxlen=RECORDS)
        self.changed = asyncio.Condition()
        """Told of every update, and of shares that are free again."""
        self.taken_by: dict[Share, int] = {}
        self._squares: dict[int, dict[int, float | None]] = {}
        self._norms: dict[int, float] = {}
        self._facts: dict[int, list[Push]] = {}  # of each clock, what its shares said
        self._settling = asyncio.Lock()
        self._since = time.perf_counter()
        self.guard: Guard | None = None
        """Judges updates. All servers of a run see the same losses and norms, and judge alike."""

    # Begin ------------------------------------------------------------------------------------------------------------

    def started(self) -> tuple[Store, Clocks]:
        if self.store is None or self.clocks is None:
            raise Refused("no worker has started a run on this server yet")
        return self.store, self.clocks

    def start_with(self, start: Start, body: Tensor) -> int:
        """Takes weights and optimizer state that the first worker brings; how many parameters.

        Raises:
            Refused: what it brings does not fit together.
        """
        keys = self._keys(start)
        sizes = {key.name: key.size for key in keys}
        if start.index >= start.servers or any(name not in sizes for name, _, _ in start.states):
            raise Refused("start: state of a parameter that this server does not hold")
        expected = 4 * (sum(sizes.values()) + sum(count for _, _, count in start.states))
        if body.numel() != expected:
            raise Refused(f"start: {body.numel():,} bytes, expected {expected:,}")
        try:
            self._build(start, start.spec.first)
        except (InputError, ValueError, RuntimeError) as error:
            self.store = None
            raise Refused(f"start: {error}") from None
        self._load(start, keys, body.view(torch.float32))
        self._snapshot()
        return sum(sizes.values())

    def _load(self, start: Start, keys: list[Key], values: Tensor) -> None:
        assert self.store is not None
        names = [(key.name, "weight", key.size) for key in keys] + [tuple(s) for s in start.states]
        parts = dict(zip([(n, k) for n, k, _ in names], values.split([c for *_, c in names]), strict=True))

        def read(name: str, kind: str, begin: int, end: int) -> Tensor | None:
            found = parts.get((name, kind))
            return None if found is None else found[begin:end]

        self.store.load(read, start.scalars, bool(start.states))

    def _keys(self, start: Start) -> list[Key]:
        every = [Key(name, tuple(shape)) for name, shape in start.spec.keys]
        if len({key.name for key in every}) < len(every) or any(not k.size or not _is_name(k.name) for k in every):
            raise Refused("start: names of parameters are not all different, or one is empty")
        return divide(every, start.servers)[start.index] if start.index < start.servers else []

    def _build(self, start: Start, version: int) -> None:
        spec = start.spec.model_copy(update={"first": version})
        self.store = Store(spec, self._keys(start), self.mesh)
        self.clocks = Clocks(spec.shares, spec.ahead, version)
        self.index, self.servers, self.start = start.index, start.servers, start
        self.tokens = spec.tokens
        # Local steps are judged by the workers that make them; asynchronous updates come to each server in an order of its own.
        if spec.consistency != "local" and (spec.consistency != "asynchronous" or start.servers == 1):
            self.guard = Guard(spec.guard, spec.clip)
            self.guard.load_state_dict({"losses": start.losses, "norms": start.norms})
        if self.index > 0:
            if start.peer is None:
                raise Refused("start: server 0's address is missing")
            self.peer = Peer(start.peer, self.key)

    def same(self, fingerprint: str) -> None:
        """Raises Refused where a worker has another run in mind."""
        assert self.store is not None
        if fingerprint != self.store.spec.fingerprint:
            raise Refused(
                "this worker's recipe or data is not the one the servers were started with: give every worker the same recipe"
            )

    def recover(self) -> None:
        """Comes back with what an earlier process of this server acknowledged."""
        checkpoint = self.journal.last()
        if checkpoint is None:
            return
        state = checkpoint.state
        start = Start.model_validate(state["start"])
        self._build(start, state["version"])
        assert self.store is not None and self.clocks is not None
        self.store.load(checkpoint.read, checkpoint.scalars, True)
        self.tokens, self.progress = state["tokens"], state["progress"]
        if self.guard is not None:
            self.guard.load_state_dict(state.get("guard", {}))
        self._norms = {clock: math.inf if norm is None else norm for clock, norm in state.get("norms", ())}
        self.crew.come_back()
        count = 0
        for head, body in self.journal.records(state["log"]):
            count += 1
            if "norm" in head and "clock" in head and len(head) == 2:
                self._norms[head["clock"]] = math.inf if head["norm"] is None else head["norm"]
                self._apply(head["clock"])
                continue
            if self._keep(Push.model_validate(head), body) and self.servers == 1:
                self._apply_complete()
        self.say(f"came back at version {self.store.version}, {count} records of the log made again")

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
        self.journal.close()

    # What is asked ----------------------------------------------------------------------------------------------------

    def progress_of(self, clock: int) -> float:
        spec = self.started()[0].spec
        return min(1.0, clock * spec.steps_per_clock / spec.steps) if spec.steps is not None else self.progress

    async def reached(self, version: int, what: str) -> Store:
        """The weights once they have had `version` updates."""
        store, _ = self.started()
        if version > store.version + store.window:
            raise Refused(f"{what}: version {version} is far from {store.version}")
        async with self.changed:
            await self.changed.wait_for(lambda: store.version >= version)
        return store

    def take_push(self, push: Push, head: dict[str, Any], body: Tensor) -> bool:
        """Keeps a share that a worker brought, and has it in the journal; False: it was there before."""
        if not self._keep(push, body):
            self.discarded += 1
            return False
        self.journal.write(head, body)
        return True

    async def norm_of(self, norm: Norm) -> float:
        """Of the gradient of a clock over all servers, once all have said their part of it to server 0."""
        if norm.clock not in self._norms:
            self._squares.setdefault(norm.clock, {})[norm.index] = norm.square
            await self.settle()
            async with self.changed:
                await self.changed.wait_for(lambda: norm.clock in self._norms)
        return self._norms[norm.clock]

    # Updates ----------------------------------------------------------------------------------------------------------

    def _keep(self, push: Push, body: Tensor) -> bool:
        store, clocks = self.started()
        if not store.add(push, body):
            return False
        clocks.finish(Share(push.clock, push.number))
        self._facts.setdefault(push.clock, []).append(push)
        return True

    async def settle(self) -> None:
        """Makes every update whose shares are all there."""
        store, _ = self.started()
        async with self._settling:
            if self.servers == 1 or store.spec.consistency in ("asynchronous", "local"):
                made = self._apply_complete()
            else:
                made = await self._apply_together()
            if made and self.journal.is_long(4 * sum(k.size for f in store.fragments for k in f)):
                self._snapshot()
        if made:
            async with self.changed:
                self.changed.notify_all()

    def _apply_complete(self) -> int:
        made = 0
        while self.store is not None and (clock := self.store.complete()) is not None:
            self._apply(clock)
            made += 1
        return made

    async def _apply_together(self) -> int:
        """Several servers clip, and judge, by one norm: server 0 adds up the squares of all."""
        store, made = self.started()[0], 0
        while (clock := store.complete()) is not None:
            square = store.load_gradient(clock)
            if self.peer is not None:
                answer = await self.peer.ask(Kind.NORM, {"clock": clock, "index": self.index, "square": square})
                self._norms[clock] = math.inf if answer["norm"] is None else answer["norm"]
            elif clock not in self._norms:
                squares = self._squares.get(clock, {})
                if len(squares) < self.servers - 1:
                    break  # comes back here when the others have said theirs
                every = [square, *squares.values()]
                self._norms[clock] = math.sqrt(sum(filter(None, every))) if None not in every else math.inf
            norm = self._norms[clock]
            self.journal.write({"clock": clock, "norm": norm if math.isfinite(norm) else None}, EMPTY)
            self._apply(clock)
            made += 1
        return made

    def _apply(self, clock: int) -> None:
        store, clocks = self.started()
        store.load_gradient(clock)
        norm = self._norms.get(clock)
        facts = self._facts.pop(clock)
        if store.spec.consistency == "asynchronous" and self.servers > 1:
            norm = math.inf if facts[0].norm is None else facts[0].norm
        applied = store.apply(clock, norm, None if self.guard is None else self.guard.allows)
        clocks.version = store.version
        self.tokens += applied.tokens
        self._record(applied, facts)
        for old in [c for c in self._norms if c < clock - 2]:
            self._norms.pop(old)
            self._squares.pop(old, None)

    def _record(self, applied: Applied, facts: list[Push]) -> None:
        """What metrics.jsonl will say of an update."""
        store, now = self.started()[0], time.perf_counter()
        waited: Counter[str] = Counter()
        for push in facts:
            waited[str(self.taken_by.pop(Share(push.clock, push.number), "?"))] += push.waited  # type: ignore[assignment]
        self.records.append(
            {
                "version": store.version,
                "step": store.version * store.spec.steps_per_clock,
                "loss": applied.loss if math.isfinite(applied.loss) else None,
                "lr": applied.lr,
                "grad_norm": applied.grad_norm if math.isfinite(applied.grad_norm) else None,
                "tokens": self.tokens,
                "tokens_per_second": applied.tokens / max(1e-9, now - self._since),
                "staleness": sum(applied.staleness) / len(applied.staleness),
                "staleness_max": max(applied.staleness),
                "over": self.crew.stopping,
                "discarded": self.discarded,
                "bytes": sum(push.moved for push in facts),
                "workers": len(self.crew),
                "waited_seconds": {worker: round(seconds, 6) for worker, seconds in sorted(waited.items())},
            }
            | ({"skipped": True, "reason": self.guard.reason if self.guard else "delta not finite"} if applied.skipped else {})
        )
        self._since = now

    def _snapshot(self) -> None:
        store = self.started()[0]
        state = {
            "start": json.loads(self.start.model_dump_json(exclude={"states", "scalars"})),
            "version": store.version,
            "tokens": self.tokens,
            "progress": self.progress,
            "guard": self.guard.state_dict() if self.guard is not None else {},
            # Another server may still ask for them, after both have come back.
            "norms": [[clock, norm if math.isfinite(norm) else None] for clock, norm in self._norms.items()],
        }
        pending = [(json.loads(part.head.model_dump_json()), part.data) for part in store.pending()]
        self.journal.start_anew(store, state, pending)


def _is_name(name: str) -> bool:
    return bool(name) and all(part.isidentifier() or part.isdigit() for part in name.split("."))

"""What a server answers to each frame of a worker, or of another server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import torch
from torch import Tensor

from zenspeed.server.clocks import Share
from zenspeed.server.crew import Complaints, Crew, Member
from zenspeed.server.messages import Hello, Join, Norm, Pull, Push, Start, State, Stop, Take, check
from zenspeed.server.updates import Updates
from zenspeed.server.wire import EMPTY, Frame, Kind, Refused, Stream, as_bytes

MAX_START_BYTES = 1 << 40
Answer = tuple[dict[str, Any], Tensor]


class Answers:
    """The answers of one server. `spawn` starts what a worker need not wait for."""

    def __init__(
        self,
        updates: Updates,
        crew: Crew,
        complaints: Complaints,
        say: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.updates, self.crew, self.complaints, self.say, self.spawn = updates, crew, complaints, say, spawn

    def max_body(self) -> int:
        """Bytes that the body of a frame may have now."""
        store = self.updates.store
        if store is None:
            return MAX_START_BYTES
        return max(store.expected_bytes(clock) for clock in range(store.spec.fragments))

    async def answer(self, stream: Stream, member: Member, frame: Frame) -> None:
        answers = {
            Kind.HELLO: self._on_hello, Kind.STATUS: self._on_status, Kind.START: self._on_start, Kind.JOIN: self._on_join,
            Kind.TAKE: self._on_take, Kind.PULL: self._on_pull, Kind.PUSH: self._on_push, Kind.STATE: self._on_state,
            Kind.NORM: self._on_norm, Kind.STOP: self._on_stop,
        }  # fmt: skip
        try:
            if frame.kind not in answers:
                raise Refused(f"{frame.kind.name} is not asked of a server")
            if frame.body.numel() and frame.kind not in (Kind.START, Kind.PUSH):
                raise Refused(f"{frame.kind.name} has no body")
            head, body = await answers[frame.kind](stream, member, frame)
        except Refused as refusal:
            self.complaints.add(f"worker {member.number}", f"refused: {refusal}")
            await stream.send(Kind.ERROR, {"error": str(refusal)})
            return
        await stream.send(Kind.OK, head, body)

    async def _on_hello(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        hello = check(Hello, frame.head)
        if member.number is None:
            number = self.crew.join(member, hello, stream)
            if self.updates.clocks is not None:
                self.updates.clocks.lost(number)  # of a connection whose end was not noticed yet
            self.say(f"worker {number} {hello.name} joined; {len(self.crew)} here")
        return {"number": member.number, "started": self.updates.store is not None, "lead": self.crew.leads(member)}, EMPTY

    async def _on_status(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        head = {
            "started": self.updates.store is not None,
            "over": self.crew.stopping,
            "version": self.updates.store.version if self.updates.store is not None else None,
            "workers": sorted(self.crew.streams),
            "compute_dtype": self.updates.store.spec.compute_dtype if self.updates.store is not None else None,
            "lead": self.crew.leads(member),
            "discarded": self.updates.discarded,
            "closed_for": dict(self.complaints.kinds.most_common(20)),
        }
        return head, EMPTY

    async def _on_start(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        start = check(Start, frame.head)
        if self.updates.store is not None:
            self.updates.same(start.spec.fingerprint)
            return {"started": True}, EMPTY
        count = self.updates.start_with(start, frame.body)
        self.say(f"started: {count:,} parameters, {start.spec.consistency}, {start.spec.shares} shares an update")
        async with self.updates.changed:
            self.updates.changed.notify_all()
        return {"started": True}, EMPTY

    async def _on_join(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        join = check(Join, frame.head)
        if self.updates.store is not None:
            self.updates.same(join.fingerprint)
        store = self.updates.store
        return {"started": store is not None, "shift": store.spec.shift if store is not None else 0}, EMPTY

    async def _on_take(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        """Waits until there is a share for this worker; answers it with the weights, where they are newer."""
        take = check(Take, frame.head)
        store, clocks = self.updates.started()
        if member.number is None or self.updates.index > 0:
            raise Refused("take: say hello first, to server 0")
        if take.close:
            clocks.closed = True
        if take.progress is not None:
            self.updates.progress = max(self.updates.progress, take.progress)
            clocks.closed |= self.updates.progress >= 1.0
        share: Share | None = None
        async with self.updates.changed:
            while not clocks.finished(store.spec.last):
                overdue_at = time.monotonic() + store.spec.lease_seconds
                share = clocks.take(member.number, overdue_at, store.spec.last)
                if share is not None:
                    break
                await self.updates.changed.wait()
        head: dict[str, Any] = {"version": store.version, "tokens": self.updates.tokens, "lead": self.crew.leads(member)}
        if share is None:
            head["finished"] = True
        else:
            self.updates.taken_by[share] = member.number
            head |= {"clock": share.clock, "number": share.number, "progress": self.updates.progress_of(share.clock)}
        if take.records is not None:
            head["records"] = [r for r in self.updates.records if r["version"] > take.records][:200]
        fragments = store.changed_since(take.have)
        return head | {"fragments": fragments}, as_bytes(store.weights(fragments))

    async def _on_pull(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        pull = check(Pull, frame.head)
        store = await self.updates.reached(pull.least, "pull")
        fragments = store.changed_since(pull.have)
        return {"version": store.version, "fragments": fragments}, as_bytes(store.weights(fragments))

    async def _on_push(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        push = check(Push, frame.head)
        store, _ = self.updates.started()
        if member.number is not None:
            self.updates.taken_by[Share(push.clock, push.number)] = member.number
        kept = self.updates.take_push(push, frame.head, frame.body)
        if kept:
            if self.updates.peer is None:
                await self.updates.settle()
            else:  # waits for server 0, which gets this share later: the worker must not wait for that
                self.spawn(self.updates.settle())
        return {"kept": kept, "version": store.version}, EMPTY

    async def _on_state(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        state = check(State, frame.head)
        store = await self.updates.reached(state.version, "state")
        shards = list(store.shards())
        entries = [[s.name, s.kind, list(s.shape), s.start, s.stop] for s in shards]
        body = torch.cat([s.tensor.detach().reshape(-1).float() for s in shards])
        return {"version": store.version, "entries": entries, "scalars": store.scalars()}, as_bytes(body)

    async def _on_norm(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        norm = check(Norm, frame.head)
        if self.updates.index > 0 or not 0 < norm.index < self.updates.servers:
            raise Refused(f"norm: of server {norm.index}, there are {self.updates.servers}")
        whole = await self.updates.norm_of(norm)
        return {"norm": whole if math.isfinite(whole) else None}, EMPTY

    async def _on_stop(self, stream: Stream, member: Member, frame: Frame) -> Answer:
        self.crew.stopping |= check(Stop, frame.head).servers
        return {}, EMPTY

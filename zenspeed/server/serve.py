"""A parameter server: connections, and what is answered to each frame. One thread; all waiting is asyncio's."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zenspeed.errors import InputError
from zenspeed.parallel.mesh import World, build_mesh
from zenspeed.server.client import Peer, read_key
from zenspeed.server.clocks import Clocks, Share
from zenspeed.server.journal import Journal
from zenspeed.server.keys import Key, divide
from zenspeed.server.messages import Hello, Join, Norm, Pull, Push, Start, State, Stop, Take, check
from zenspeed.server.store import Applied, Store
from zenspeed.server.wire import EMPTY, Frame, Kind, Refused, Stream, WireError, as_bytes, keep_alive

AUTHENTICATE_SECONDS = 10.0
MESSAGE_SECONDS = 120.0
MAX_CONNECTIONS = 256
LEAD_RETURNS_SECONDS = 5.0
"""After a server came back, until another worker may lead than the one that did."""
MAX_START_BYTES = 1 << 40
RECORDS = 4096  # of updates, kept for the worker that writes metrics


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


class Server:
    """Server `index` of several; 0 also gives out the shares. Needs a process group of one process."""

    def __init__(self, world: World, key: bytes, folder: Path, say: Callable[[str], None], *, sync: bool = False) -> None:
        self.mesh, self.key, self.say = build_mesh(world), key, say
        self.complaints = Complaints(say)
        self.journal = Journal(folder, sync=sync)
        self.store: Store | None = None
        self.clocks: Clocks | None = None
        self.index, self.servers = 0, 1
        self.peer: Peer | None = None
        self.message_seconds, self.authenticate_seconds = MESSAGE_SECONDS, AUTHENTICATE_SECONDS
        self.workers: dict[int, Stream] = {}
        self.progress = 0.0
        self.tokens = 0
        self.discarded = 0
        self.records: deque[dict[str, Any]] = deque(maxlen=RECORDS)
        self._next_number = 0
        self._lead: int | None = None
        self._lead_returns_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._squares: dict[int, dict[int, float | None]] = {}
        self._norms: dict[int, float] = {}
        self._facts: dict[int, list[Push]] = {}  # of each clock, what its shares said
        self._workers_of: dict[tuple[int, int], int] = {}
        self._changed = asyncio.Condition()
        self._settling = asyncio.Lock()
        self._stopping, self._stopped = False, asyncio.Event()
        self._since = time.perf_counter()

    # Life -------------------------------------------------------------------------------------------------------------

    async def run(self, listener: socket.socket) -> None:
        """Serves until a worker has said that the run is over, and all have left."""
        self.recover()
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener))
        watching = asyncio.create_task(self._watch_leases())
        await self._stopped.wait()
        for task in (accepting, watching, *self._tasks):
            task.cancel()
        await asyncio.gather(accepting, watching, *self._tasks, return_exceptions=True)
        if self.peer is not None:
            self.peer.close()
        self.journal.close()

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
        self._next_number = 1000  # those that were here come back with their own
        self._lead_returns_until = time.monotonic() + LEAD_RETURNS_SECONDS
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

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptors left, say: those that are there go on
                self.complaints.add("listener", f"cannot accept: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            if len(self._tasks) >= MAX_CONNECTIONS:
                self.complaints.add(str(address[0]), f"too many connections, {MAX_CONNECTIONS} are open")
                connection.close()
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(connection)
            self._spawn(self._serve(connection, f"{address[0]}:{address[1]}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        """One connection, from the proof of the key to its end; whatever goes wrong ends this one alone."""
        stream, worker = Stream(connection, self.message_seconds), _Worker()
        try:
            async with asyncio.timeout(self.authenticate_seconds):
                await stream.authenticate(self.key)
            while True:
                await self._answer(stream, worker, await stream.receive(self._max_body()))
        except EOFError:
            pass
        except TimeoutError:
            self.complaints.add(peer, "sent nothing, or not all of a frame, in the time it has")
        except WireError as error:
            self.complaints.add(peer, str(error))
        except OSError as error:
            self.complaints.add(peer, f"connection lost: {error.strerror or error}")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a fault of ours: this connection is ended, the others go on
            self.complaints.add(peer, f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            await self._leave(worker, stream)

    async def _leave(self, worker: _Worker, stream: Stream) -> None:
        if worker.number is None or self.workers.get(worker.number) is not stream:
            return
        del self.workers[worker.number]
        freed = self.clocks.lost(worker.number) if self.clocks is not None else 0
        if not self._stopped.is_set():
            shares = f", {freed} of its shares are free again" if freed else ""
            self.say(f"worker {worker.number} left{shares}; {len(self.workers)} here")
        if self._stopping and not self.workers:
            self._stopped.set()
        async with self._changed:
            self._changed.notify_all()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            late = self.clocks.overdue(time.monotonic()) if self.clocks is not None else []
            for share, worker in late:
                self.say(f"worker {worker} did not bring share {share.number} of update {share.clock} in time: free again")
            if late:
                async with self._changed:
                    self._changed.notify_all()

    # Frames -----------------------------------------------------------------------------------------------------------

    def _max_body(self) -> int:
        if self.store is None:
            return MAX_START_BYTES
        return max(self.store.expected_bytes(clock) for clock in range(self.store.spec.fragments))

    async def _answer(self, stream: Stream, worker: _Worker, frame: Frame) -> None:
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
            head, body = await answers[frame.kind](stream, worker, frame)
        except Refused as refusal:
            self.complaints.add(f"worker {worker.number}", f"refused: {refusal}")
            await stream.send(Kind.ERROR, {"error": str(refusal)})
            return
        await stream.send(Kind.OK, head, body)

    async def _on_hello(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        hello = check(Hello, frame.head)
        if worker.number is None:
            number = hello.number if hello.number is not None else self._next_number
            while number in self.workers and hello.number is None:
                number += 1
            worker.number = number
            self._next_number = max(self._next_number, number + 1) if hello.number is None else self._next_number
            if self.clocks is not None:
                self.clocks.lost(number)  # of a connection whose end was not noticed yet
            self.workers[number] = stream
            if hello.leads and self._lead not in self.workers:
                self._lead = number
            self.say(f"worker {number} {hello.name} joined; {len(self.workers)} here")
        return {"number": worker.number, "started": self.store is not None, "lead": self._leads(worker)}, EMPTY

    def _leads(self, worker: _Worker) -> bool:
        """One worker writes metrics and checkpoints and evaluates: the first, and when it has gone the next."""
        if self._lead not in self.workers and self.workers and time.monotonic() > self._lead_returns_until:
            self._lead = min(self.workers)
        return worker.number is not None and worker.number == self._lead and not self._stopping

    async def _on_status(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        head = {
            "started": self.store is not None,
            "over": self._stopping,
            "version": self.store.version if self.store is not None else None,
            "workers": sorted(self.workers),
            "compute_dtype": self.store.spec.compute_dtype if self.store is not None else None,
            "lead": self._leads(worker),
            "discarded": self.discarded,
            "closed_for": dict(self.complaints.kinds.most_common(20)),
        }
        return head, EMPTY

    async def _on_start(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        start = check(Start, frame.head)
        if self.store is not None:
            self._same(start.spec.fingerprint)
            return {"started": True}, EMPTY
        keys = self._keys(start)
        sizes = {key.name: key.size for key in keys}
        if start.index >= start.servers or any(name not in sizes for name, _, _ in start.states):
            raise Refused("start: state of a parameter that this server does not hold")
        expected = 4 * (sum(sizes.values()) + sum(count for _, _, count in start.states))
        if frame.body.numel() != expected:
            raise Refused(f"start: {frame.body.numel():,} bytes, expected {expected:,}")
        try:
            self._build(start, start.spec.first)
        except (InputError, ValueError, RuntimeError) as error:
            self.store = None
            raise Refused(f"start: {error}") from None
        self._load(start, keys, frame.body.view(torch.float32))
        self._snapshot()
        self.say(f"started: {sum(sizes.values()):,} parameters, {start.spec.consistency}, {start.spec.shares} shares an update")
        async with self._changed:
            self._changed.notify_all()
        return {"started": True}, EMPTY

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
        staleness = {"bounded": spec.staleness, "asynchronous": None}.get(spec.consistency, 0)
        self.clocks = Clocks(spec.shares, staleness, version)
        self.index, self.servers, self.start = start.index, start.servers, start
        self.tokens = spec.tokens
        if self.index > 0:
            if start.peer is None:
                raise Refused("start: server 0's address is missing")
            self.peer = Peer(start.peer, self.key)

    def _same(self, fingerprint: str) -> None:
        assert self.store is not None
        if fingerprint != self.store.spec.fingerprint:
            raise Refused(
                "this worker's recipe or data is not the one the servers were started with: give every worker the same recipe"
            )

    async def _on_join(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        join = check(Join, frame.head)
        if self.store is not None:
            self._same(join.fingerprint)
        return {"started": self.store is not None}, EMPTY

    def _started(self) -> tuple[Store, Clocks]:
        if self.store is None or self.clocks is None:
            raise Refused("no worker has started a run on this server yet")
        return self.store, self.clocks

    async def _on_take(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        """Waits until there is a share for this worker; answers it with the weights, where they are newer."""
        take = check(Take, frame.head)
        store, clocks = self._started()
        if worker.number is None or self.index > 0:
            raise Refused("take: say hello first, to server 0")
        if take.close:
            clocks.closed = True
        if take.progress is not None:
            self.progress = max(self.progress, take.progress)
            clocks.closed |= self.progress >= 1.0
        share: Share | None = None
        async with self._changed:
            while not clocks.finished(store.spec.last):
                overdue_at = time.monotonic() + store.spec.lease_seconds
                share = clocks.take(worker.number, overdue_at, store.spec.last)
                if share is not None:
                    break
                await self._changed.wait()
        head: dict[str, Any] = {"version": store.version, "tokens": self.tokens, "lead": self._leads(worker)}
        if share is None:
            head["finished"] = True
        else:
            self._workers_of[share] = worker.number
            head |= {"clock": share.clock, "number": share.number, "progress": self._progress_of(share.clock)}
        if take.records is not None:
            head["records"] = [r for r in self.records if r["version"] > take.records][:200]
        fragments = store.changed_since(take.have)
        return head | {"fragments": fragments}, as_bytes(store.weights(fragments))

    def _progress_of(self, clock: int) -> float:
        spec = self._started()[0].spec
        return min(1.0, clock * spec.steps_per_clock / spec.steps) if spec.steps is not None else self.progress

    async def _reached(self, version: int, what: str) -> Store:
        """The weights once they have had `version` updates."""
        store, _ = self._started()
        if version > store.version + store.window:
            raise Refused(f"{what}: version {version} is far from {store.version}")
        async with self._changed:
            await self._changed.wait_for(lambda: store.version >= version)
        return store

    async def _on_pull(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        pull = check(Pull, frame.head)
        store = await self._reached(pull.least, "pull")
        fragments = store.changed_since(pull.have)
        return {"version": store.version, "fragments": fragments}, as_bytes(store.weights(fragments))

    async def _on_push(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        push = check(Push, frame.head)
        store, _ = self._started()
        if worker.number is not None:
            self._workers_of[push.clock, push.number] = worker.number
        kept = self._keep(push, frame.body)
        if kept:
            self.journal.write(frame.head, frame.body)
            if self.peer is None:
                await self._settle()
            else:  # waits for server 0, which gets this share later: the worker must not wait for that
                self._spawn(self._settle())
        else:
            self.discarded += 1
        return {"kept": kept, "version": store.version}, EMPTY

    async def _on_state(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        state = check(State, frame.head)
        store = await self._reached(state.version, "state")
        shards = list(store.shards())
        entries = [[s.name, s.kind, list(s.shape), s.start, s.stop] for s in shards]
        body = torch.cat([s.tensor.detach().reshape(-1).float() for s in shards])
        return {"version": store.version, "entries": entries, "scalars": store.scalars()}, as_bytes(body)

    async def _on_norm(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        norm = check(Norm, frame.head)
        if self.index > 0 or not 0 < norm.index < self.servers:
            raise Refused(f"norm: of server {norm.index}, there are {self.servers}")
        if norm.clock not in self._norms:
            self._squares.setdefault(norm.clock, {})[norm.index] = norm.square
            await self._settle()
            async with self._changed:
                await self._changed.wait_for(lambda: norm.clock in self._norms)
        whole = self._norms[norm.clock]
        return {"norm": whole if math.isfinite(whole) else None}, EMPTY

    async def _on_stop(self, stream: Stream, worker: _Worker, frame: Frame) -> tuple[dict[str, Any], Tensor]:
        self._stopping |= check(Stop, frame.head).servers
        return {}, EMPTY

    # Updates ----------------------------------------------------------------------------------------------------------

    def _keep(self, push: Push, body: Tensor) -> bool:
        store, clocks = self._started()
        if not store.add(push, body):
            return False
        clocks.finish(Share(push.clock, push.number))
        self._facts.setdefault(push.clock, []).append(push)
        return True

    async def _settle(self) -> None:
        """Makes every update whose shares are all there."""
        store, _ = self._started()
        async with self._settling:
            if self.servers == 1 or store.spec.consistency in ("asynchronous", "local") or store.spec.clip is None:
                made = self._apply_complete()
            else:
                made = await self._apply_together()
            if made and self.journal.is_long(4 * sum(k.size for f in store.fragments for k in f)):
                self._snapshot()
        if made:
            async with self._changed:
                self._changed.notify_all()

    def _apply_complete(self) -> int:
        made = 0
        while self.store is not None and (clock := self.store.complete()) is not None:
            self._apply(clock)
            made += 1
        return made

    async def _apply_together(self) -> int:
        """Several servers clip by one norm: server 0 adds up the squares of all."""
        store, made = self._started()[0], 0
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
        store, clocks = self._started()
        store.load_gradient(clock)
        norm = self._norms.get(clock)
        facts = self._facts.pop(clock)
        if store.spec.consistency == "asynchronous" and self.servers > 1:
            norm = math.inf if facts[0].norm is None else facts[0].norm
        applied = store.apply(clock, norm)
        clocks.version = store.version
        self.tokens += applied.tokens
        self._record(applied, facts)
        for old in [c for c in self._norms if c < clock - 2]:
            self._norms.pop(old)
            self._squares.pop(old, None)

    def _record(self, applied: Applied, facts: list[Push]) -> None:
        """What metrics.jsonl will say of an update."""
        store, now = self._started()[0], time.perf_counter()
        waited: Counter[str] = Counter()
        for push in facts:
            waited[str(self._workers_of.pop((push.clock, push.number), "?"))] += push.waited  # type: ignore[assignment]
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
                "over": self._stopping,
                "discarded": self.discarded,
                "bytes": sum(push.moved for push in facts),
                "workers": len(self.workers),
                "waited_seconds": {worker: round(seconds, 6) for worker, seconds in sorted(waited.items())},
            }
            | ({"skipped": True} if applied.skipped else {})
        )
        self._since = now

    def _snapshot(self) -> None:
        store = self._started()[0]
        state = {
            "start": json.loads(self.start.model_dump_json(exclude={"states", "scalars"})),
            "version": store.version,
            "tokens": self.tokens,
            "progress": self.progress,
        }
        pending = [(json.loads(part.head.model_dump_json()), part.data) for part in store.pending()]
        self.journal.start_anew(store, state, pending)


class _Worker:
    """Who is at the other end of a connection."""

    number: int | None = None


def _is_name(name: str) -> bool:
    return bool(name) and all(part.isidentifier() or part.isdigit() for part in name.split("."))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0: any that is free.

    Raises:
        InputError: it cannot.
    """
    try:
        return socket.create_server((host, port), backlog=128, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--listen {host}:{port}: {error.strerror}; is another server there already?") from None


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} parameter server: {message}", file=sys.stderr, flush=True)


def serve(host: str, port: int, key_file: Path, folder: Path, *, sync: bool = False) -> None:
    """Runs a server until a worker ends the run. Prints the port that it listens at."""
    from zenspeed.parallel.mesh import world

    torch.set_num_threads(1)
    with world() as here, listen(host, port) as listener:

        async def main() -> None:
            server = Server(here, read_key(key_file), folder, say, sync=sync)
            print(f"listening at {host}:{listener.getsockname()[1]}", flush=True)
            await server.run(listener)

        asyncio.run(main())

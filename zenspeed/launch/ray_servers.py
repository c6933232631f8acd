"""`zenspeed launch --on ray` with `parallel.mode: parameter_server`: servers and workers as Ray actors.

server died  → a new one on its node, at its port, goes on from its journal; workers wait for it meanwhile
worker died  → a new one joins, where restarts are left; its share has been given to another one in any case
node lost    → with it a server's address: all begin anew from the newest checkpoint, where restarts are left
Ctrl-C       → workers are asked to save and end
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.errors import InputError, RolledBack
from zenspeed.launch.job import Job
from zenspeed.launch.watch import beside, send
from zenspeed.recipe import Recipe

GRACE_SECONDS = 10.0
"""From the end of the run until workers that have not noticed are ended."""
STOP_SECONDS = 60.0
"""After Ctrl-C, until workers are ended that have not saved."""
SERVER_RESTARTS = 20


class NodeLost(Exception):
    """A server's machine has gone."""


class Spot(NamedTuple):
    """Where a server is; `node` is Ray's name of the machine."""

    node: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Order(NamedTuple):
    """What a worker is to do."""

    recipe: dict[str, Any]
    folder: str
    """Where relative paths of the recipe begin."""
    addresses: list[str]
    key: bytes
    resume: Path | None


class ServerActor:
    """A parameter server. `listen` first, then `run`, which returns when the run is over."""

    def listen(self, port: int) -> Spot:
        """Where it is to be reached: at the port that was asked for, or a free one."""
        import ray

        from zenspeed.server.serve import listen

        host = ray.util.get_node_ip_address()
        self._listener = listen(host, port)
        return Spot(ray.get_runtime_context().get_node_id(), host, self._listener.getsockname()[1])

    def run(self, key: bytes, folder: str) -> None:
        from zenspeed.server.serve import serve

        Path(folder).mkdir(parents=True, exist_ok=True)
        serve(self._listener, key, Path(folder))


class WorkerActor:
    """A worker of a run."""

    def place(self) -> tuple[str, int]:
        """Its node, by Ray's name, and its process."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def run(self, number: int, order: Order) -> bool:
        """Whether it came to the end of the run; False: it was asked to stop."""
        from zenspeed.config import validate
        from zenspeed.server.run import Place, train

        enter(order.folder)
        os.environ["LOCAL_RANK"] = str(number)
        recipe = validate(Recipe, order.recipe)
        assert recipe.run.folder is not None
        with beside(recipe.run.folder, recipe.guard, number, 0):
            result = train(recipe, resume=order.resume, servers=Place(order.addresses, order.key))
        return not result.interrupted


def enter(folder: str) -> None:
    """Makes relative paths mean on this machine what they mean where the job was given."""
    try:
        os.chdir(folder)
    except OSError:
        raise InputError(f"{folder}: is not on this machine; start from a folder that all machines share") from None


class Room(NamedTuple):
    """What the workers need."""

    workers: int
    need: dict[str, float]
    """CPU, and GPU where there is one, of each."""
    placement: str
    wait_seconds: float


class Worker(NamedTuple):
    """A worker that runs."""

    actor: Any
    node: str
    pid: int


def run(job: Job, ray: Any, room: Room) -> int:
    """Runs the job to its end; the exit code.

    Raises:
        InputError: the cluster has no room, or what a worker raised.
    """
    from zenspeed.run import begun
    from zenspeed.server.run import settle

    left = job.max_restarts
    while True:
        found = begun(job.recipe.run.folder, (), None, job.recipe.run.storage)
        recipe = settle(job.recipe if found is None else found.recipe, room.workers)
        crew = Crew(ray, recipe, found and found.checkpoint, room, left)
        try:
            return crew.run()
        except RolledBack:
            left = crew.restarts_left
        except NodeLost as lost:
            left = crew.restarts_left - 1
            if left < 0:
                raise InputError(f"--on ray: {lost}; the same command goes on from the last checkpoint") from None
            _say(f"{lost}; all begin anew from the newest checkpoint")
        finally:
            crew.end()


class Crew:
    """The actors of one start."""

    def __init__(self, ray: Any, recipe: Recipe, resume: Path | None, room: Room, restarts: int) -> None:
        from ray.util.placement_group import placement_group

        from zenspeed.server.run import folder_of

        self.ray, self.recipe, self.resume, self.room, self.restarts_left = ray, recipe, resume, room, restarts
        self.folder, self.key = folder_of(recipe).absolute(), secrets.token_hex(32).encode()
        self.server_restarts = 0
        self._servers: dict[int, Any] = {}
        self._spots: dict[int, Spot] = {}
        self._workers: dict[int, Worker] = {}
        self._running: dict[Any, tuple[str, int]] = {}  # what is waited for -> whose it is
        self._over_at: float | None = None
        self._group = placement_group([room.need] * room.workers, strategy=room.placement)

    def run(self) -> int:
        self._wait_for_room()
        strategy = "SPREAD" if "SPREAD" in self.room.placement else "DEFAULT"
        for index in range(self.recipe.parallel.server.count):
            self._start_server(index, strategy)
        addresses = [spot.address for spot in self._spots.values()]
        self._order = Order(self.recipe.model_dump(mode="json"), str(Path.cwd()), addresses, self.key, self.resume)
        try:
            for number in range(self.room.workers):
                self._start_worker(number)
            return self._watch()
        except KeyboardInterrupt:
            return self._stop()

    def _wait_for_room(self) -> None:
        workers, need, placement, seconds = self.room
        try:
            self.ray.get(self._group.ready(), timeout=seconds)
        except self.ray.exceptions.GetTimeoutError:
            raise InputError(
                f"--on ray: no room for {workers} workers of {need} within {seconds:g} s ({placement}); ask for fewer, or "
                "--with wait_seconds=…"
            ) from None

    def end(self) -> None:
        """Ends what is left."""
        for actor in (*(worker.actor for worker in self._workers.values()), *self._servers.values()):
            self.ray.kill(actor)
        self.ray.util.remove_placement_group(self._group)

    # Beginning and end of an actor -------------------------------------------------------------------------------------

    def _start_server(self, index: int, strategy: Any) -> None:
        """At the port where it was, after a first time: workers know it by its address."""
        actor = self.ray.remote(ServerActor).options(num_cpus=0, scheduling_strategy=strategy).remote()
        before = self._spots.get(index)
        self._spots[index] = self.ray.get(actor.listen.remote(before.port if before else 0))
        self._servers[index] = actor
        self._running[actor.run.remote(self.key, str(self.folder / str(index)))] = ("server", index)

    def _start_worker(self, number: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where, need = PlacementGroupSchedulingStrategy(placement_group=self._group), self.room.need
        options = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0.0), "scheduling_strategy": where}
        actor = self.ray.remote(WorkerActor).options(**options).remote()
        self._workers[number] = Worker(actor, *self.ray.get(actor.place.remote(), timeout=self.room.wait_seconds))
        self._running[actor.run.remote(number, self._order)] = ("worker", number)

    def _watch(self) -> int:
        """Until the run is over, or nobody is left to go on with it."""
        code = 0
        while self._workers:
            done, _ = self.ray.wait(list(self._running), timeout=0.5)
            for future in done:
                kind, number = self._running.pop(future)
                code = (self._server_ended if kind == "server" else self._worker_ended)(number, future) or code
            if self._over_at is not None and time.monotonic() - self._over_at > GRACE_SECONDS:
                break
        return 0 if self._over_at is not None else code

    def _server_ended(self, index: int, future: Any) -> int:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        exceptions = self.ray.exceptions
        try:
            self.ray.get(future)
            return 0  # the run is over
        except exceptions.RayTaskError as error:
            raise InputError(f"--on ray: parameter server {index}: {said(error)}") from None
        except exceptions.RayActorError:
            self.server_restarts += 1
        node = self._spots[index].node
        if node not in {n["NodeID"] for n in self.ray.nodes() if n["Alive"]}:
            raise NodeLost(f"the machine of parameter server {index} was lost")
        if self.server_restarts > SERVER_RESTARTS:
            raise InputError(f"--on ray: parameter server {index} died, as servers did {SERVER_RESTARTS} times before")
        _say(f"parameter server {index} died; it is started again")
        try:
            self._start_server(index, NodeAffinitySchedulingStrategy(node, soft=False))
        except exceptions.RayActorError:
            raise NodeLost(f"the machine of parameter server {index} was lost") from None
        return 0

    def _worker_ended(self, number: int, future: Any) -> int:
        exceptions = self.ray.exceptions
        worker = self._workers.pop(number)
        try:
            finished = self.ray.get(future)
            self.ray.kill(worker.actor)
        except exceptions.RayTaskError as error:  # what the user can put right; the others meet the same
            if isinstance(error.cause, RolledBack):
                raise error.cause from None
            raise InputError(f"--on ray: training failed: {said(error)}") from None
        except exceptions.RayActorError:
            if self._over_at is not None:
                return 0
            if self.restarts_left > 0:
                self.restarts_left -= 1
                _say(f"worker {number} died; it is started again")
                try:
                    self._start_worker(number)
                    return 0
                except (exceptions.RayActorError, exceptions.GetTimeoutError):
                    _say(f"worker {number} found no room")  # the others must not wait for it
            _say(f"worker {number} died; {len(self._workers)} go on")
            return 1
        if finished:
            self._over_at = self._over_at or time.monotonic()
        return 0 if finished else 130

    def _stop(self) -> int:
        """Asks all workers to save a checkpoint and end."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for worker in self._workers.values():
            there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
            self.ray.remote(send).options(num_cpus=0, scheduling_strategy=there).remote(worker.pid, signal.SIGTERM)
        futures = [future for future, (kind, _) in self._running.items() if kind == "worker"]
        self.ray.wait(futures, num_returns=len(futures), timeout=STOP_SECONDS)
        return 130


def said(error: Any) -> str:
    """What the user's part of an error of Ray's is: the last line of its cause."""
    inner = getattr(error, "cause", None) or error
    return (str(inner).strip().splitlines() or [repr(inner)])[-1]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

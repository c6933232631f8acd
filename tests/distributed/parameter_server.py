"""A parameter server in a thread of the test's process, and workers that the test steps one after the other."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zenspeed.engine import Engine
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import lr_factor, plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig
from zenspeed.server.client import Servers
from zenspeed.server.keys import keys_of
from zenspeed.server.messages import Spec
from zenspeed.server.replica import Replica, Ticket
from zenspeed.server.serve import Server, listen
from zenspeed.server.streaming import Streaming
from zenspeed.server.wire import Kind

KEY = b"a secret of more than sixteen bytes"
BATCH, CONTEXT, VOCABULARY = 8, 16, 61
Batch = tuple[Tensor, Tensor]


class Running:
    """A server at a port of this machine; `crash` ends it without a word, as kill -9 would."""

    def __init__(self, folder: Path, port: int = 0, **limits: float) -> None:
        self.said: list[str] = []
        self.listener = listen("127.0.0.1", port)
        self.port = int(self.listener.getsockname()[1])
        self.server: Server
        ready = threading.Event()
        world = start_world()

        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            self.server = Server(world, KEY, folder, self.said.append)
            for name, seconds in limits.items():
                setattr(self.server, name, seconds)
            self._loop.call_soon(ready.set)  # when it has come back and waits
            await self.server.run(self.listener)

        def enter() -> None:
            try:
                asyncio.run(main())
            except asyncio.CancelledError:
                pass
            finally:
                self.listener.close()

        self._thread = threading.Thread(target=enter, daemon=True)
        self._thread.start()
        assert ready.wait(20)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def crash(self) -> None:
        task = self._task
        assert task is not None

        def end() -> None:
            for other in asyncio.all_tasks(self._loop):
                other.cancel()

        self._loop.call_soon_threadsafe(end)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.server.updates.records]


def model() -> Transformer:
    out = Transformer(ModelConfig(layers=2, width=32, heads=2, context=CONTEXT, init="gpt2"), VOCABULARY)
    out.init_weights(3)
    return out


def engine_of(module: nn.Module, optim: OptimConfig, clip: float | None) -> Engine:
    return Engine(module, plan_optimizers(module, optim), build_mesh(start_world()), ZeroOptions(stage=0), clip=clip)


def batch_of(step: int) -> Batch:
    """The whole batch of an update."""
    data = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(step))
    data[:, 1::2] = data[:, 0:-1:2]  # something to learn
    return data[:, :-1], data[:, 1:].clone()


def loss_sum(module: nn.Module, batch: Batch) -> Tensor:
    return module(batch[0], targets=batch[1])


def spec_of(module: nn.Module, optim: OptimConfig, steps: int, **more: Any) -> Spec:
    facts: dict[str, Any] = {
        "fingerprint": "test", "keys": [(key.name, list(key.shape)) for key in keys_of(module)], "optim": optim,
        "compute_dtype": "float32", "clip": 0.5, "consistency": "synchronous", "staleness": 0, "shares": 2, "local_steps": 1,
        "outer_lr": 1.0, "outer_momentum": 0.0, "fragments": 1, "compress": "none", "lease_seconds": 60.0, "steps": steps,
        "first": 0, "tokens": 0,
    }  # fmt: skip
    return Spec(**(facts | more))


class Worker:
    """A worker whose steps the test calls."""

    def __init__(self, addresses: list[str], spec_options: dict[str, Any], optim: OptimConfig, steps: int) -> None:
        self.servers = Servers(addresses, KEY)
        module = model()
        self.spec = spec_of(module, optim, steps, **spec_options)
        self.engine = engine_of(module, optim, self.spec.clip)
        self.replica = (Streaming if self.spec.overlap_steps else Replica)(self.engine, self.servers, self.spec)
        self.replica.start(None)
        self.ticket: Ticket | None = None

    def take(self) -> Ticket:
        self.ticket = self.replica.take(close=False, progress=None, records=None)
        return self.ticket

    def push(self, times: float = 1.0) -> None:
        """`times`: of the loss, as what is said of it."""
        ticket = self.ticket
        assert ticket is not None
        local = self.spec.consistency == "local"
        steps, total, targets = self.spec.steps_per_clock, 0.0, 0.0
        for step in range(ticket.clock * steps, (ticket.clock + 1) * steps):
            self.replica.catch_up(step - ticket.clock * steps)
            micro = [tuple(part.chunk(self.spec.shares)[ticket.number] for part in batch_of(step))]
            count = float(micro[0][1].numel())
            if local:
                factor = lr_factor(self.spec.optim, step / (self.spec.steps or 1), step, self.spec.steps)
                total += self.engine.train_step(micro, loss_sum, count, factor)[0] / steps / self.spec.shares
            else:
                total = float(self.engine.accumulate(micro, loss_sum, count * self.spec.shares))
            targets += count
        norm = float(self.engine.zero.grad_norm()) if self.spec.consistency == "asynchronous" else None
        facts = {"targets": targets, "tokens": int(targets), "loss": total * times, "norm": norm}
        self.replica.push(ticket, facts, ticket.version)
        if isinstance(self.replica, Streaming):
            self.replica.send()  # here one thread takes for all workers, and the last of them would wait for the others
        self.ticket = None

    def weights(self) -> Tensor:
        """The servers' weights now."""
        parts = []
        for link in self.servers.links:
            parts.append(link.ask(Kind.PULL, {"have": -1}).body.view(torch.float32))
        return torch.cat(parts)

    def vanish(self) -> None:
        """Ends without a word."""
        for link in self.servers.links:
            assert link._connection is not None
            link._connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            link.close()


def run_until_finished(workers: list[Worker]) -> None:
    """All take, then all push, and so on."""
    while workers:
        taken = [worker for worker in workers if not worker.take().finished]
        for worker in taken:
            worker.push()
        workers = taken

"""The loop of a worker: take a share, compute, push. The worker that leads also evaluates, saves and writes metrics."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any, cast

import torch

from zenspeed.checkpoint import Checkpoint
from zenspeed.data.batch import Batch
from zenspeed.display import Display
from zenspeed.engine import Engine, Shard
from zenspeed.machine import resident_bytes
from zenspeed.optim import lr_factor
from zenspeed.pace import Clock, Due, Interrupt
from zenspeed.parallel.share import share_of
from zenspeed.runlog import RunLog, read_metrics
from zenspeed.server.client import Servers
from zenspeed.server.keys import keys_of
from zenspeed.server.messages import Spec
from zenspeed.server.replica import Replica, Ticket
from zenspeed.server.streaming import Streaming
from zenspeed.server.wire import Kind
from zenspeed.training import Result, Run, evaluate, finish, save


def spec_of(run: Run) -> Spec:
    """The run as the servers need to know it."""
    recipe, server = run.recipe, run.recipe.parallel.server
    decides = recipe.model_dump(mode="json", include={"task", "model", "train", "optim"})
    for key in ("compile", "lanes"):  # each worker's own choice, as its machine is
        decides["train"].pop(key, None)
    decides["server"] = server.model_dump(mode="json", exclude={"addresses", "key_file", "count", "lease_seconds"})
    text = json.dumps([decides, recipe.run.seed, run.task.fingerprint], sort_keys=True)
    local = server.consistency == "local"
    steps_per_clock = server.local_steps // server.fragments if local else 1
    return Spec(
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        keys=[(key.name, list(key.shape)) for key in keys_of(run.model)],
        optim=recipe.optim,
        compute_dtype="bfloat16" if recipe.train.precision == "bf16" else "float32",
        clip=recipe.train.clip,
        shares=server.shares or 1,
        steps=recipe.train.steps,
        first=run.counters.step // steps_per_clock,
        tokens=run.counters.tokens,
        **server.model_dump(
            include={
                "consistency", "staleness", "local_steps", "outer_lr", "outer_momentum", "fragments", "overlap_steps", "mixing",
                "compress", "lease_seconds",
            }
        ),
    )  # fmt: skip


class Remote:
    """What the loop's helpers ask of an engine, where weights and optimizer state are the servers'."""

    def __init__(self, engine: Engine, servers: Servers) -> None:
        self.scaler, self.zero, self.autocast = engine.scaler, engine.zero, engine.autocast
        self._servers = servers
        self._scalars: dict[str, dict[str, float]] = {}
        self.version = 0

    def shards(self) -> Iterator[Shard]:
        self._scalars = {}
        for link in self._servers.links:
            answer = link.ask(Kind.STATE, {"version": self.version})
            values, at = answer.body.view(torch.float32), 0
            for name, kind, shape, start, stop in answer.head["entries"]:
                yield Shard(name, kind, torch.Size(shape), start, stop, values[at : at + stop - start])
                at += stop - start
            self._scalars |= answer.head["scalars"]

    def scalars(self) -> dict[str, dict[str, float]]:
        return self._scalars


class Work:
    """A worker in a run."""

    def __init__(self, run: Run, servers: Servers, checkpoint: Checkpoint | None) -> None:
        self.spec, self.servers = spec_of(run), servers
        kind = Streaming if self.spec.overlap_steps else Replica
        self.replica = kind(run.engine, servers, self.spec)
        self.replica.start(checkpoint)
        self.remote = Remote(run.engine, servers)
        self.engine = run.engine
        alone = run.world._replace(rank=0, size=1)  # evaluation is one worker's alone
        self.run = run._replace(engine=cast(Engine, self.remote), world=alone)
        self.leads = run.log.enabled
        servers.leads(self.leads)
        self._written = self.spec.first
        self._flops = run.task.flops_per_token(run.model)

    def loop(self, interrupt: Interrupt) -> Result:
        recipe, counters, task = self.run.recipe, self.run.counters, self.run.task
        tokens_per_update = recipe.train.batch_size * task.tokens_per_sample
        clock = Clock(recipe, counters, task.evaluation_tokens / tokens_per_update)
        due = Due(recipe, counters, clock)
        timed = recipe.train.steps is None
        while True:
            if interrupt.asked and not self.leads:
                return self._result(interrupted=True)
            ticket = self.replica.take(
                close=interrupt.asked,
                progress=min(1.0, clock.progress()) if timed and self.leads else None,
                records=self._written if self.leads else None,
            )
            self._stand(ticket.version, ticket.tokens)
            if ticket.lead != self.leads and not (ticket.finished and self.leads):
                self._lead(ticket.lead)
            if self.leads:
                self._write(ticket, clock)
            if ticket.finished:
                break
            if self.leads and due.evaluate():
                self._evaluate(clock)
                due.evaluated()
            if self.leads and due.save():
                self._save(ticket, clock)
                due.saved()
            began = time.perf_counter()
            facts = self._compute(ticket)
            facts["seconds"] = time.perf_counter() - began
            self.replica.push(ticket, facts, ticket.version)
            clock.step_took((time.perf_counter() - began) / self.spec.steps_per_clock)
        if not self.leads:
            if not self.servers.wait_until_over():
                return self._result(interrupted=interrupt.asked)
            self._lead(True)
        while (ticket := self.replica.take(close=False, progress=None, records=self._written)).records:
            self._write(ticket, clock)
        self.remote.version = ticket.version
        if self.replica.local:
            self.replica.show_servers_weights()
        return finish(self.run, clock, interrupted=interrupt.asked)

    def _result(self, *, interrupted: bool) -> Result:
        counters = self.run.counters
        return Result(self.run.folder, counters.step, counters.validation_loss, interrupted, leads=False)

    def _stand(self, version: int, tokens: int) -> None:
        counters = self.run.counters
        counters.step = version * self.spec.steps_per_clock
        if self.spec.steps is not None:
            counters.step = min(counters.step, self.spec.steps)
        counters.samples, counters.tokens = counters.step * self.run.recipe.train.batch_size, tokens

    def _lead(self, leads: bool) -> None:
        """The worker that led has gone: from now on this one evaluates, saves and writes metrics. Or another one does."""
        self.leads = leads
        self.servers.leads(leads)
        if not leads:
            self.run.log.close()
            self.run = self.run._replace(display=Display(enabled=False))
            return
        folder, step = self.run.folder, self.run.counters.step
        written = [record["step"] for record in read_metrics(folder) if "lr" in record]
        self._written = (written[-1] if written else 0) // self.spec.steps_per_clock
        log = RunLog(folder, enabled=True, tensorboard=self.run.recipe.log.tensorboard, resumed_step=step)
        self.run = self.run._replace(log=log, display=Display())
        self.run.display.say(f"step {self.run.counters.step}: the worker that led has gone, this one leads")

    # A share ----------------------------------------------------------------------------------------------------------

    def _compute(self, ticket: Ticket) -> dict[str, Any]:
        torch.manual_seed(self.run.recipe.run.seed + 1_000_003 * ticket.clock + ticket.number)  # of dropout
        first = ticket.clock * self.spec.steps_per_clock
        if not self.replica.local:
            micro = self._micro_batches(first, ticket.number)
            targets, tokens = self._count(micro)
            divisor = self.spec.shares * max(1.0, targets)
            loss = float(self.engine.accumulate(micro, self.run.task.loss, divisor))
            norm = float(self.engine.zero.grad_norm()) if self.spec.consistency == "asynchronous" else None
            norm = norm if norm is not None and math.isfinite(norm) else None
            return {"targets": targets, "tokens": tokens, "loss": loss if math.isfinite(loss) else None, "norm": norm}
        last = first + self.spec.steps_per_clock
        last = last if self.spec.steps is None else min(last, self.spec.steps)
        all_targets, all_tokens, total = 0.0, 0, 0.0
        for step in range(first, last):
            self.replica.catch_up(step - first)
            micro = self._micro_batches(step, ticket.number)
            targets, tokens = self._count(micro)
            progress = step / self.spec.steps if self.spec.steps is not None else ticket.progress
            factor = lr_factor(self.spec.optim, progress, step, self.spec.steps)
            loss, _ = self.engine.train_step(micro, self.run.task.loss, max(1.0, targets), factor)
            all_targets, all_tokens, total = all_targets + targets, all_tokens + tokens, total + loss * targets
        mean = total / max(1.0, all_targets) / self.spec.shares
        return {"targets": all_targets, "tokens": all_tokens, "loss": mean if math.isfinite(mean) else None}

    def _micro_batches(self, step: int, number: int) -> list[Batch]:
        train = self.run.recipe.train
        each = train.batch_size // self.spec.shares
        return self.run.task.micro_batches(
            step * train.batch_size + number * each, share_of(each, 0, 1, train.micro_batch_size or 1).sizes
        )

    def _count(self, micro: list[Batch]) -> tuple[float, int]:
        task = self.run.task
        return float(sum(map(task.num_targets, micro))), sum(map(task.num_tokens, micro))

    # What the leading worker does -------------------------------------------------------------------------------------

    def _evaluate(self, clock: Clock) -> None:
        before = self.replica.show_servers_weights() if self.replica.local else None
        evaluate(self.run, clock)
        if before is not None:
            self.replica.show(before)

    def _save(self, ticket: Ticket, clock: Clock) -> None:
        """While a share of update `clock` is here, no server can go past that version, so all are at the same."""
        ordered = self.spec.consistency in ("synchronous", "bounded", "local")
        self.remote.version = ticket.clock if ordered else ticket.version
        if self.remote.version != ticket.version:
            tokens = ticket.tokens + (ticket.clock - ticket.version) * int(
                self.run.recipe.train.batch_size * self.run.task.tokens_per_sample
            )
            self._stand(self.remote.version, tokens)
        save(self.run, clock)

    def _write(self, ticket: Ticket, clock: Clock) -> None:
        """Metrics of the updates since the last time, and the line that people see."""
        recipe, display = self.run.recipe, self.run.display
        for record in ticket.records:
            self._written = record["version"]
            record = {k: v for k, v in record.items() if k != "version"}
            rate = record["tokens_per_second"]
            record |= {"mfu": rate * self._flops / self.run.peak_flops, "memory_bytes": resident_bytes()}
            record["elapsed_seconds"] = clock.elapsed()
            record["loss"] = math.nan if record["loss"] is None else record["loss"]
            if (record["step"] // self.spec.steps_per_clock) % recipe.log.every == 0:
                self.run.log.write(record)
            display.progress(
                record
                | {
                    "steps": recipe.train.steps,
                    "progress": clock.progress(),
                    "validation_loss": self.run.counters.validation_loss,
                    "seconds_left": clock.seconds_left(),
                }
            )

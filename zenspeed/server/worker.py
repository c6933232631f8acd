"""The loop of a worker: take a share, compute, push. The worker that leads also evaluates, saves and writes metrics."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from typing import Any, cast

import torch

from zenspeed.checkpoint import Checkpoint, newest_whole, places, restate
from zenspeed.data.batch import Batch
from zenspeed.display import Display
from zenspeed.engine import Engine, Shard, Update
from zenspeed.errors import InputError, RolledBack
from zenspeed.guard import Guard
from zenspeed.machine import resident_bytes
from zenspeed.optim import lr_factor
from zenspeed.pace import Clock, Due, Interrupt
from zenspeed.parallel.share import share_of
from zenspeed.recovery import MAX_SKIPPED, forget_after
from zenspeed.runlog import RunLog, note, read_metrics
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
    decides = recipe.model_dump(mode="json", include={"task", "model", "train", "optim", "guard"})
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
        guard=recipe.guard,
        compute_dtype="bfloat16" if recipe.train.half else "float32",
        clip=recipe.train.clip,
        shares=server.shares or 1,
        steps=recipe.train.steps,
        first=run.counters.step // steps_per_clock,
        tokens=run.counters.tokens,
        shift=max(0, run.counters.samples - run.counters.step * recipe.train.batch_size),
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

    def shards(self) -> list[Shard]:
        """All is asked for at once: `scalars` are those of the same moment."""
        self._scalars, out = {}, []
        for link in self._servers.links:
            answer = link.ask(Kind.STATE, {"version": self.version})
            values, at = answer.body.view(torch.float32), 0
            for name, kind, shape, start, stop in answer.head["entries"]:
                out.append(Shard(name, kind, torch.Size(shape), start, stop, values[at : at + stop - start]))
                at += stop - start
            self._scalars |= answer.head["scalars"]
        return out

    def scalars(self) -> dict[str, dict[str, float]]:
        return self._scalars


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Work:
    """A worker in a run."""

    def __init__(self, run: Run, servers: Servers, checkpoint: Checkpoint | None) -> None:
        self.spec, self.servers = spec_of(run), servers
        kind = Streaming if self.spec.overlap_steps else Replica
        self.replica = kind(run.engine, servers, self.spec)
        self.shift = self.replica.start(checkpoint)
        self.remote = Remote(run.engine, servers)
        self.engine = run.engine
        alone = run.world._replace(rank=0, size=1)  # evaluation is one worker's alone
        self.run = run._replace(engine=cast(Engine, self.remote), world=alone)
        self.guard = Guard(run.recipe.guard, run.recipe.train.clip)
        self.judge = run.recovery.guard  # of the run, as the servers judge it; it goes into checkpoints
        self.skipped = 0  # updates in a row that the servers did not make
        self.tried = self.judge.rollbacks > 0  # the run has just gone back, and no update is made since
        self.leads = run.log.enabled
        servers.leads(self.leads)
        self._written = self.spec.first
        self._flops = run.task.flops_per_token(run.model)

    def loop(self, interrupt: Interrupt) -> Result:
        recipe, counters, task = self.run.recipe, self.run.counters, self.run.task
        tokens_per_update = recipe.train.batch_size * task.tokens_per_sample
        clock = Clock(recipe, counters, task.evaluation_tokens / tokens_per_update, self.run.began)
        due = Due(recipe, counters, clock)
        timed = recipe.train.steps is None
        while True:
            if interrupt.asked and not self.leads:
                return self._result(interrupted=True)
            self.run.pulse.beat("wait", counters.step + 1)
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
            self.run.pulse.beat("step", ticket.clock * self.spec.steps_per_clock + 1)
            facts = self._compute(ticket)
            facts["seconds"] = time.perf_counter() - began
            self.run.pulse.beat("wait", counters.step + 1)
            self.replica.push(ticket, facts, ticket.version)
            clock.step_took((time.perf_counter() - began) / self.spec.steps_per_clock)
        self.run.pulse.beat("wait", counters.step)
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
        counters.samples, counters.tokens = self.shift + counters.step * self.run.recipe.train.batch_size, tokens

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
            loss, norm = self._gradient(ticket, micro, targets)
            return {"targets": targets, "tokens": tokens, "loss": _finite(loss), "norm": _finite(norm)}
        last = first + self.spec.steps_per_clock
        last = last if self.spec.steps is None else min(last, self.spec.steps)
        all_targets, all_tokens, total = 0.0, 0, 0.0
        for step in range(first, last):
            self.replica.catch_up(step - first)
            micro = self._micro_batches(step, ticket.number)
            targets, tokens = self._count(micro)
            progress = step / self.spec.steps if self.spec.steps is not None else ticket.progress
            factor = lr_factor(self.spec.optim, progress, step, self.spec.steps)
            loss = self._local_update(step, ticket.number, micro, max(1.0, targets), factor)
            all_targets, all_tokens, total = all_targets + targets, all_tokens + tokens, total + loss * targets
        mean = total / max(1.0, all_targets) / self.spec.shares
        return {"targets": all_targets, "tokens": all_tokens, "loss": mean if math.isfinite(mean) else None}

    def _gradient(self, ticket: Ticket, micro: list[Batch], targets: float) -> tuple[float, float]:
        """Loss and norm of a share's gradient, which is then in the engine. What looks wrong is computed once more: a bit that
        flipped in memory does not flip twice. Whether an update is made is for the servers to say, who see all of it."""

        def compute() -> tuple[float, float]:
            torch.set_rng_state(rng)
            self.engine.zero.zero_grad()
            divisor = self.spec.shares * max(1.0, targets)
            loss = float(self.engine.accumulate(micro, self.run.task.loss, divisor))
            return loss, float(self.engine.zero.grad_norm())

        rng = torch.get_rng_state()
        loss, norm = compute()
        if not self.guard.allows(loss, norm):
            first = self.guard.reason
            loss, norm = compute()
            outcome = "as before" if not self.guard.allows(loss, norm) else "right at the second try"
            self._note("share computed again", ticket.clock, ticket.number, reason=first, outcome=outcome)
        return loss, norm

    def _local_update(self, step: int, number: int, micro: list[Batch], targets: float, factor: float) -> float:
        """One update of this worker's own; a blocked one is tried once more, then left out. The loss; 0 if not finite."""
        rng = torch.get_rng_state()

        def attempt() -> tuple[float, Update]:
            torch.set_rng_state(rng)
            return self.engine.train_step(micro, self.run.task.loss, targets, factor, allow=self.guard.allows)

        loss, update = attempt()
        if update.skipped:
            first = self.guard.reason
            loss, update = attempt()
            outcome = "set aside" if update.skipped else "made at the second try"
            self._note("update blocked", step, number, reason=first, outcome=outcome)
        return loss if math.isfinite(loss) else 0.0

    def _note(self, event: str, step: int, number: int | None, **facts: Any) -> None:
        """Says what went wrong with the samples of an update, or of one share of it."""
        size = self.run.recipe.train.batch_size
        each = size if number is None else size // self.spec.shares
        first = self.shift + step * size + (number or 0) * each
        note(self.run.folder, event, step=step + 1, samples=[first, first + each], worker=self.servers.number, **facts)
        said = f"step {step + 1}: {event}: samples {first} to {first + each}: "
        print(said + ", ".join(f"{k} {v}" for k, v in facts.items()), file=sys.stderr, flush=True)

    def _micro_batches(self, step: int, number: int) -> list[Batch]:
        train = self.run.recipe.train
        each = train.batch_size // self.spec.shares
        return self.run.task.micro_batches(
            self.shift + step * train.batch_size + number * each, share_of(each, 0, 1, train.micro_batch_size or 1).sizes
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

    def _judged(self, record: dict[str, Any]) -> None:
        """Names the batch of an update that the servers did not make; after several the run goes back, too many end it."""
        self.skipped = self.skipped + 1 if record.get("skipped") else 0
        if not self.skipped:
            self.tried = False
            if None not in (record["loss"], record["grad_norm"]):
                self.judge.allows(record["loss"], record["grad_norm"])
            return
        step, reason = record["step"], record["reason"]
        if not self.replica.local:
            self._note("update blocked", step - 1, None, reason=reason, outcome="set aside")
        if self.judge.set_aside(step):
            self._roll_back(step)
        if self.skipped > MAX_SKIPPED:
            raise InputError(
                f"step {step}: no update in {self.skipped} batches in a row ({reason}); go back to an earlier checkpoint "
                f"(zenspeed resume --checkpoint), lower optim.lr (now {self.run.recipe.optim.lr}) or set train.precision=fp32"
            )

    def _roll_back(self, step: int) -> None:
        """Ends this start of the run, so that it begins anew from before the first batch set aside, with samples from behind
        the last one; where no checkpoint is left, the run goes on."""
        run, samples = self.run, self.shift + step * self.run.recipe.train.batch_size
        run.checkpointer.wait()
        limit = self.spec.first * self.spec.steps_per_clock if self.tried else self.judge.aside[0]
        there = places(run.recipe.checkpoint.copy_to, run.folder)
        path, wrong = newest_whole(there, limit)
        for reason in wrong:
            note(run.folder, "checkpoint skipped", reason=reason)
        if path is None:
            note(run.folder, "no checkpoint to roll back to", step=step)
            return
        back, rollbacks = Checkpoint(path), self.judge.rollbacks + 1
        guard = back.state.get("guard", {}) | {"rollbacks": rollbacks, "aside": []}
        for place in there:
            if (place / path.name).exists():
                restate(place / path.name, samples=samples, guard=guard)
        forget_after(run.recipe, run.folder, back.step)
        note(run.folder, "rolled back", step=step, to=back.step, samples_from=samples, rollbacks=rollbacks)
        run.display.say(f"step {step}: rolled back to step {back.step}, samples from {samples} on")
        raise RolledBack(
            f"step {step}: the run went back to step {back.step}; start servers anew, then: zenspeed resume {run.folder}"
        )

    def _write(self, ticket: Ticket, clock: Clock) -> None:
        """Metrics of the updates since the last time, and the line that people see."""
        recipe, display = self.run.recipe, self.run.display
        for record in ticket.records:
            self._written = record["version"]
            self._judged(record)
            record = {k: v for k, v in record.items() if k != "version"}
            rate = record["tokens_per_second"]
            record |= {"mfu": rate * self._flops / self.run.peak_flops, "memory_bytes": resident_bytes()}
            record["elapsed_seconds"] = clock.elapsed()
            record["samples"] = self.shift + record["step"] * recipe.train.batch_size
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

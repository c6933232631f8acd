"""What a run does about what goes wrong inside it: bad batches, copies that differ, the way back to a good checkpoint.

    blocked update → the batch once more → blocked again: set aside → several of them: back to a good checkpoint, other data
    copies of weights differ → the rank and the parameter are named → back to the last checkpoint, the same data

Every decision is a line of the run's events.jsonl and is said. All ranks decide alike, from numbers that are the same on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zenspeed.checkpoint import Checkpoint, newest_whole, places, set_aside_after
from zenspeed.config import InputError
from zenspeed.data.batch import Batch
from zenspeed.display import Display
from zenspeed.engine import Engine, Update
from zenspeed.guard import Guard
from zenspeed.parallel.mesh import World
from zenspeed.parallel.replicas import compare
from zenspeed.recipe import Recipe
from zenspeed.runlog import RunLog, note
from zenspeed.runstore import RunStore
from zenspeed.tasks.base import Task

MAX_SKIPPED = 20  # updates in a row that were not made, after which a run is stopped


class Counters:
    """Where a run stands; all of it goes into the checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.samples = 0
        self.tokens = 0
        self.elapsed = 0.0  # seconds of earlier processes of this run
        self.started: float | None = None  # seconds into the run when the first update began
        self.validation_loss: float | None = None
        self.validated_step = -1


def restore(checkpoint: Checkpoint, engine: Engine, counters: Counters, task: Task, here: World) -> None:
    """Makes weights, optimizer, counters and random state those of `checkpoint`."""
    state = checkpoint.state
    if state["data"] != task.fingerprint:
        raise InputError(
            f"{checkpoint.folder}: was trained on other data than recipe and files give now (fingerprint {state['data'][:12]}, "
            f"now {task.fingerprint[:12]}); restore the data, or start a new run"
        )
    engine.load(checkpoint.read, checkpoint.scalars)
    engine.scaler.load_state_dict(state["scaler"])
    counters.step, counters.samples, counters.tokens = state["step"], state["samples"], state["tokens"]
    counters.elapsed, counters.started, counters.validation_loss = state["elapsed"], state["started"], state["validation_loss"]
    if (rng := checkpoint.rng(here.rank)) is not None:
        torch.set_rng_state(rng)


def forget_after(recipe: Recipe, folder: Path, step: int) -> None:
    """Takes away checkpoints of later steps: the run went back and goes on another way."""
    set_aside_after(folder / "checkpoints", step)
    if recipe.run.storage:
        RunStore(recipe.run.storage).forget_after(step)


class Recovery:
    """The guard of one run, and its way back."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        here: World,
        engine: Engine,
        task: Task,
        counters: Counters,
        log: RunLog,
        say: Display,
        finish_saving: Callable[[], None],
    ) -> None:
        self.recipe, self.folder, self.here, self.engine, self.task = recipe, folder, here, engine, task
        self.counters, self.log, self.display, self.finish_saving = counters, log, say, finish_saving
        self.guard = Guard(recipe.guard, recipe.train.clip)
        self.skipped = 0
        """Updates in a row that were not made. No checkpoint is written meanwhile: it might be of spoilt weights."""
        self._tried: int | None = None  # step of the checkpoint of the last way back, until an update is made
        self._healed = 0  # ways back because of copies that differed

    def step(
        self, micro: Sequence[Batch], num_targets: float, lr: float, smallest: Callable[[], Batch]
    ) -> tuple[float, Update]:
        """One update; a blocked one is tried once more on the same batch. The rest is as of `Engine.train_step`."""
        rng = torch.get_rng_state()
        loss, update = self.engine.train_step(micro, self.task.loss, num_targets, lr, smallest, self.guard.allows)
        if update.skipped:
            first = self.guard.reason
            torch.set_rng_state(rng)
            loss, update = self.engine.train_step(micro, self.task.loss, num_targets, lr, smallest, self.guard.allows)
            outcome = "set aside" if update.skipped else "made at the second try"
            self._note("update blocked", step=self.counters.step + 1, samples=self._samples(), reason=first, outcome=outcome)
        self.skipped = self.skipped + 1 if update.skipped else 0
        if not update.skipped:
            self._tried = None
        return loss, update

    def _samples(self) -> list[int]:
        """First sample of the batch, and the one after its last."""
        return [self.counters.samples, self.counters.samples + self.recipe.train.batch_size]

    def after(self, loss: float, update: Update) -> bool:
        """Call when the counters are past the step; true when the run went back, so that what is due is to be asked anew."""
        if not update.skipped:
            return False
        step = self.counters.step
        if self.guard.set_aside(step) and self._roll_back():
            return True
        if self.skipped > MAX_SKIPPED:
            raise InputError(
                f"step {step}: no update in {self.skipped} batches in a row ({self.guard.reason}; loss {loss}); the weights "
                f"are as of step {step - self.skipped}; lower optim.lr (now {self.recipe.optim.lr}) or set train.precision=fp32"
            )
        return False

    def _roll_back(self) -> bool:
        """Weights of before the first batch set aside, samples from behind the last one; false where no checkpoint is left."""
        limit = self.guard.aside[0] if self._tried is None else self._tried
        samples, step = self.counters.samples, self.counters.step
        checkpoint = self._go_back(limit)
        if checkpoint is None:
            self._note("no checkpoint to roll back to", step=step)
            return False
        self.guard.rolled_back(checkpoint.state.get("guard", {}))
        self.counters.samples, self._tried = samples, checkpoint.step
        self._note("rolled back", step=step, to=checkpoint.step, samples_from=samples, rollbacks=self.guard.rollbacks)
        return True

    def check_replicas(self) -> bool:
        """Compares the copies of weights; true when they differed and the run went back."""
        found = compare(self.engine.zero) if self.here.size > 1 else []
        if not found:
            return False
        step, differences = self.counters.step, [{"parameter": d.parameter, "ranks": list(d.ranks)} for d in found]
        ranks = sorted({rank for d in found for rank in d.ranks})
        self._note("copies of weights differ", step=step, ranks=ranks, parameters=differences)
        self._healed += 1
        checkpoint = self._go_back(step + 1) if self._healed <= self.recipe.guard.rollbacks else None
        if checkpoint is None:
            raise InputError(
                f"step {step}: weights of {found[0].parameter} differ between ranks (rank {', '.join(map(str, ranks))}); "
                f"memory or processor of that machine is at fault; leave it out and go on: zenspeed resume {self.folder}"
            )
        self.guard.load_state_dict(checkpoint.state.get("guard", {}))
        self._note("rolled back", step=step, to=checkpoint.step, samples_from=self.counters.samples)
        return True

    def _go_back(self, before: int) -> Checkpoint | None:
        """Loads the newest whole checkpoint of a step before `before`, on all ranks; None where there is none."""
        # Which checkpoint is the newest must not depend on how fast it is written, nor may a later one appear afterwards.
        self.finish_saving()
        dist.barrier()
        choice: list[Any] = [None]
        if self.here.rank == 0:
            path, wrong = newest_whole(places(self.recipe.checkpoint.copy_to, self.folder), before)
            for reason in wrong:
                self._note("checkpoint skipped", reason=reason)
            choice = [path]
        dist.broadcast_object_list(choice)
        if choice[0] is None:
            return None
        checkpoint = Checkpoint(choice[0])
        restore(checkpoint, self.engine, self.counters, self.task, self.here)
        dist.barrier()
        if self.here.rank == 0:
            forget_after(self.recipe, self.folder, checkpoint.step)
        self.log.rewind(checkpoint.step)
        self.skipped = 0
        return checkpoint

    def _note(self, event: str, **facts: Any) -> None:
        if self.here.rank == 0:
            note(self.folder, event, **facts)
            self.display.say(f"{event}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))

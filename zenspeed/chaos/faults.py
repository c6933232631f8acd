"""Faults by name, and how those are made that come from inside a process: a broken task, a broken checkpointer, a limit.

Nothing of the training code knows of them. Signals, damaged files and cut networks come from outside
(`trial.py`, `network.py`).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from zenspeed.checkpoint import Checkpointer
from zenspeed.data.batch import Batch
from zenspeed.evaluate.interval import Figure
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, Task
from zenspeed.tasks.open import open_task
from zenspeed.training import Parts

SLOW_SECONDS = 0.4
JUMP_SECONDS = 7_000.0
ROOM_BYTES = 64 * 2**20


class Fault(NamedTuple):
    """What goes wrong, where and when."""

    kind: str
    rank: int
    step: int
    delay: float
    """Seconds after the step began, of faults from outside."""
    seed: int


KINDS = {
    "kill": "a rank is killed (kill -9)",
    "terminate": "a rank gets SIGTERM",
    "stop": "a rank is held by SIGSTOP",
    "hang": "a rank waits for ever in its data",
    "disk full": "a rank cannot write any more",
    "slow disk": "checkpoints are slow, and a rank is killed in one",
    "checkpoint bit": "a bit of the newest checkpoint flips while the job is down",
    "gradient bit": "a bit of a gradient flips",
    "weight bit": "a bit of a rank's copy of the weights flips",
    "nan batch": "a batch gives NaN each time, and a rank is killed later",
    "nan batches": "three batches in a row give NaN each time",
    "clock jump": "the clock of a rank jumps by two hours",
    "out of memory": "a rank gets no more memory",
    "network cut": "the network between two hosts is cut",
    "slow network": "the network slows to 20 Mbit/s, which delays every step",
    "network delay": "all packets to and from a host come 50 ms later, ± 10",
}

DATA = ("nan batch", "nan batches")
"""Faults of the data: they are there on all ranks, in each attempt."""


def parts_of(fault: Fault | None, rank: int, first_attempt: bool) -> Parts:
    """What a run is made of on `rank`, broken as `fault` says."""
    if fault is None or (fault.rank != rank and fault.kind not in DATA):
        return Parts()
    inside = fault.kind in DATA or first_attempt
    if not inside:
        return Parts()
    # A roll back must wait for the checkpoint under way, however slowly it is written.
    checkpointer = SlowCheckpointer if fault.kind in ("slow disk", "nan batches") else Checkpointer
    return Parts(lambda recipe, say: BrokenTask(recipe, say, fault), checkpointer)


class SlowCheckpointer(Checkpointer):
    """Writes after a while, as on a slow disk."""

    def _write(self, *arguments: Any) -> None:
        time.sleep(SLOW_SECONDS)
        super()._write(*arguments)


class BrokenTask(Task):
    """A task in which `fault` happens at its step."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None, fault: Fault | None = None) -> None:
        assert fault is not None
        self._inner, self._fault, self._batch = open_task(recipe, progress), fault, recipe.train.batch_size
        self._step, self._done, self._flipped = 0, False, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return self._inner.build_model(seed, pretrained)

    def remarks(self) -> list[str]:
        return self._inner.remarks()

    def num_targets(self, batch: Batch) -> int:
        return self._inner.num_targets(batch)

    def num_tokens(self, batch: Batch) -> int:
        return self._inner.num_tokens(batch)

    def flops_per_token(self, model: nn.Module) -> float:
        return self._inner.flops_per_token(model)

    def evaluate(self, model: nn.Module, place: Place) -> dict[str, Figure]:
        return self._inner.evaluate(model, place)

    def finish(self, model: nn.Module, place: Place, folder: Path, say: Callable[[str], None]) -> dict[str, Figure]:
        return self._inner.finish(model, place, folder, say)

    def summary(self, figures: dict[str, Figure]) -> str:
        return self._inner.summary(figures)

    def micro_batches(self, first: int, sizes: Sequence[int]) -> list[Batch]:
        self._step = first // self._batch + 1
        if self._step == self._fault.step and not self._done:
            self._before_batch()
        return self._inner.micro_batches(first, sizes)

    def _before_batch(self) -> None:
        kind = self._fault.kind
        if kind == "hang":
            while True:
                time.sleep(1.0)
        if kind == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
        if kind == "clock jump":
            now = time.time
            time.time = lambda: now() + JUMP_SECONDS  # in this process alone, which is broken on purpose
        if kind == "out of memory":
            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
            bytearray(4 * ROOM_BYTES)  # MemoryError: the system refuses

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        now = self._step == self._fault.step
        if now and not self._done:
            self._done = True
            self._flip(next(p for p in module.parameters() if p.ndim > 1))
        loss = self._inner.loss(module, batch)
        return loss * float("nan") if self._is_spoilt() else loss

    def _is_spoilt(self) -> bool:
        first, count = self._fault.step, {"nan batch": 1, "nan batches": 3}.get(self._fault.kind, 0)
        return first <= self._step < first + count

    def _flip_gradient(self, gradient: Tensor) -> Tensor:
        if self._flipped:
            return gradient
        self._flipped = True
        return flip(gradient, 30)

    def _flip(self, parameter: nn.Parameter) -> None:
        if self._fault.kind == "gradient bit":
            parameter.register_hook(self._flip_gradient)
        if self._fault.kind == "weight bit":
            with torch.no_grad():
                parameter.copy_(flip(parameter, 20))


def flip(tensor: Tensor, bit: int) -> Tensor:
    """A copy in which a bit of the largest element has flipped; 30 is the highest one of the exponent of fp32."""
    out = tensor.detach().clone().contiguous()
    out.view(-1).view(torch.int32)[int(out.abs().argmax())] ^= 1 << bit
    return out

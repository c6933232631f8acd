"""The largest micro-batch that pays, measured: 1, 2, 4 … sequences at a time, up to a rank's share of the batch or its memory.

The rule: a size is taken when it trains at least LEAST_GAIN faster than the largest one taken before it. A micro-batch that is
larger for nothing would cost memory for nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from zenspeed.engine import Engine
from zenspeed.memory import MemoryLimit, OutOfMemory
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import World, build_mesh
from zenspeed.parallel.share import share_of
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.plan.measure import in_processes
from zenspeed.recipe import Recipe
from zenspeed.resolve import resolve
from zenspeed.tasks.base import Task
from zenspeed.tasks.models import adopt_pretrained
from zenspeed.tasks.open import open_task
from zenspeed.tune.trial import Place

LEAST_GAIN = 0.03
PASSES = 4
"""Over the batch, of which the first is for warming up."""
MOST_SECONDS = 180.0
"""That it may take; the micro-batch then stays."""


class Sizes(NamedTuple):
    """What was measured."""

    speeds: list[tuple[int, float | None]]
    """(sequences, sequences per second of all ranks; None: too little memory)."""
    resolved: int
    """What the recipe comes to without a choice."""


def measure_micro_batches(recipe: Recipe, place: Place) -> Sizes | str:
    """Speeds of all sizes in fresh processes; how these ended if one died."""
    found = in_processes(_measure, place.ranks, place.threads, recipe, seconds=MOST_SECONDS)
    return found if isinstance(found, str) else Sizes(*found[0])


def largest_that_pays(speeds: Sequence[tuple[int, float | None]]) -> int | None:
    """By the rule above; None where not even the smallest fits."""
    taken: tuple[int, float] | None = None
    for size, speed in speeds:
        if speed is None:
            break
        if taken is None or speed >= (1 + LEAST_GAIN) * taken[1]:
            taken = size, speed
    return None if taken is None else taken[0]


def words(speeds: Sequence[tuple[int, float | None]], taken: int | None) -> str:
    """For people."""
    shown = ", ".join(f"{size}: {'too little memory' if speed is None else f'{speed:.3g}/s'}" for size, speed in speeds)
    if taken is None:
        return f"micro-batch: not even one sequence at a time fits ({shown})"
    return f"micro-batch: {taken}, the largest that is {LEAST_GAIN:.0%} faster than the one before (sequences {shown})"


def _measure(here: World, recipe: Recipe) -> tuple[list[tuple[int, float | None]], int]:
    recipe = adopt_pretrained(recipe, lambda line: None)
    resolved = resolve(recipe, here)
    task = open_task(resolved, None) if here.rank == 0 else None
    dist.barrier()
    task = task or open_task(resolved, None)
    share, speeds = recipe.train.batch_size // here.size, []
    fixed = task.micro_batch_counts or recipe.train.batch_size % here.size  # or no size divides every rank's share
    sizes = [] if fixed else [2**i for i in range(share.bit_length()) if share % 2**i == 0]
    for size in sizes:
        train = recipe.train.model_copy(update={"micro_batch_size": size})
        speed = _speed(task, resolve(recipe.model_copy(update={"train": train}), here), here)
        speeds.append((size, speed))
        if speed is None:
            break
    return speeds, resolved.train.micro_batch_size or 1


def _speed(task: Task, recipe: Recipe, here: World) -> float | None:
    """Sequences per second over forward and backward of the whole batch, of the slowest rank; None: does not fit on one."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if recipe.train.half else torch.float32
    model = task.build_model(0).to(here.device)
    engine = Engine(
        model, plan_optimizers(model, recipe.optim, dtype), build_mesh(here, recipe.parallel.shard_ranks),
        ZeroOptions(stage=recipe.parallel.zero), compute_dtype=dtype, clip=recipe.train.clip, lanes=recipe.train.lanes or 1,
    )  # fmt: skip
    share = share_of(recipe.train.batch_size, here.rank, here.size, recipe.train.micro_batch_size or 1)
    limit = MemoryLimit(recipe.train.memory, here.device, here.size)
    took = []
    for step in range(PASSES):
        micro = task.micro_batches(step * recipe.train.batch_size + share.first, share.sizes)
        start = time.perf_counter()
        try:
            with limit:
                engine.train_step(
                    micro, task.loss, float(recipe.train.batch_size), 0.0, lambda: task.micro_batches(share.first, [1])[0]
                )
        except OutOfMemory:
            return None
        took.append(time.perf_counter() - start)
    slowest = torch.tensor(statistics.median(took[1:]), dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return recipe.train.batch_size / float(slowest)

"""The two measurements that need gradients: range test and noise scale, in a fresh process for each rank.

python -m zenspeed.tune.measure recipe.yaml measured.json      under `zenspeed launch -n 2 -m` in two of them
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from zenspeed.config import dump, load, write_atomically
from zenspeed.engine import Engine
from zenspeed.machine import keep_memory
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import World, build_mesh, world
from zenspeed.parallel.share import share_of
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe
from zenspeed.resolve import resolve
from zenspeed.tasks.base import Task
from zenspeed.tasks.models import adopt_pretrained
from zenspeed.tasks.open import open_task
from zenspeed.tune.noise import Noise, critical_batch
from zenspeed.tune.rate import Choice, choose, ended, factors
from zenspeed.tune.trial import Place


class Measured(NamedTuple):
    """What the short runs showed."""

    rate: Choice
    noise: Noise
    update_seconds: float
    """Of an update, whatever its batch."""
    sequence_seconds: float
    """For each sequence of the batch, on all ranks together."""
    seconds: float
    curves: list[list[float]]
    """Losses of the range test, a seed each."""


def measure(recipe: Recipe, folder: Path, place: Place, *, seeds: int, steps: int) -> Measured | str:
    """Runs both in `place.ranks` processes; the last words of one that died instead of an error."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, found = folder / "recipe.yaml", folder / "measured.json"
    write_atomically(asked, dump(recipe))
    found.unlink(missing_ok=True)
    words = ["zenspeed", "launch", "-n", str(place.ranks), "-m"] if place.ranks > 1 else []
    command = [sys.executable, "-m", *words, "zenspeed.tune.measure", str(asked), str(found), str(seeds), str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": str(place.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not found.exists():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return f"code {done.returncode}: {said[-1] if said else 'no word'}"
    content = json.loads(found.read_text(encoding="utf-8"))
    return Measured(Choice(*content.pop("rate")), Noise(*content.pop("noise")), **content)


def _measure(recipe: Recipe, here: World, seeds: int, steps: int) -> dict[str, Any]:
    start = time.perf_counter()
    recipe = resolve(adopt_pretrained(recipe, lambda line: None), here)
    task = open_task(recipe, None) if here.rank == 0 else None
    dist.barrier()
    task = task or open_task(recipe, None)
    curves = [_range_test(task, recipe, here, seed, steps) for seed in range(seeds)]
    rate = choose(factors(steps), curves)
    noise, update, sequence = _noise(task, recipe, here, rate.factor, seeds, max(8, steps // 4))
    return {
        "rate": rate, "noise": noise, "update_seconds": update, "sequence_seconds": sequence,
        "seconds": time.perf_counter() - start, "curves": curves,
    }  # fmt: skip


def _engine(task: Task, recipe: Recipe, here: World, seed: int) -> Engine:
    """Whole gradients on every rank (stages 0 and 1), so that a micro-batch's own can be looked at."""
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if recipe.train.half else torch.float32
    model = task.build_model(seed).to(here.device)
    plans = plan_optimizers(model, recipe.optim, dtype)
    zero = ZeroOptions(stage=min(1, recipe.parallel.zero))
    return Engine(
        model, plans, build_mesh(here, recipe.parallel.shard_ranks), zero, compute_dtype=dtype, clip=recipe.train.clip
    )


def _targets(task: Task, micro: list[Any]) -> float:
    """Of the global batch."""
    total = torch.tensor(float(sum(map(task.num_targets, micro))), dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def _range_test(task: Task, recipe: Recipe, here: World, seed: int, steps: int) -> list[float]:
    """Losses while the rate grows; every seed has weights and samples of its own."""
    engine, share = _engine(task, recipe, here, recipe.run.seed + 1000 + seed), recipe.train.batch_size // here.size
    losses: list[float] = []
    for step, factor in enumerate(factors(steps)):
        first = (seed * steps + step) * recipe.train.batch_size + here.rank * share
        micro = task.micro_batches(first, share_of(share, 0, 1, recipe.train.micro_batch_size or 1).sizes)
        losses.append(engine.train_step(micro, task.loss, _targets(task, micro), float(factor))[0])
        if ended(losses):
            break
    return losses


def _noise(task: Task, recipe: Recipe, here: World, factor: float, seeds: int, steps: int) -> tuple[Noise, float, float]:
    """The noise scale over the second half of a short run at the chosen rate; seconds of an update, and of a sequence."""
    batch, share = recipe.train.batch_size, recipe.train.batch_size // here.size
    size = max((d for d in range(1, share + 1) if share % d == 0 and d * 2 <= batch), default=0)
    size = max((d for d in range(1, size + 1) if share % d == 0 and d * 4 <= batch), default=size)
    if size == 0:
        return Noise(None, None, None), 0.0, 0.0
    engine = _engine(task, recipe, here, recipe.run.seed + 999)
    small, big, updates, passes = [], [], [], []
    for step in range(2 * steps):
        first = (seeds * 10_000 + step) * batch + here.rank * share
        micro = task.micro_batches(first, [size] * (share // size))
        start = time.perf_counter()
        mean = _backward(engine, task, micro, _targets(task, micro))
        middle = time.perf_counter()
        engine.set_lr(factor * min(1.0, (step + 1) / steps))
        norm = engine.update().grad_norm
        if step >= steps:
            small.append(mean)
            big.append(norm**2)
            passes.append(middle - start)
            updates.append(time.perf_counter() - middle)
    return critical_batch(small, big, size, batch), statistics.median(updates), statistics.median(passes) / batch


def _backward(engine: Engine, task: Task, micro: list[Any], num_targets: float) -> float:
    """The mean over all micro-batches, of all ranks, of the squared norm of their own mean gradient; gradients are added up."""
    buckets = engine.zero.trainable
    before = [torch.zeros_like(b.gradients) for b in buckets if b.gradients is not None]
    squares = torch.zeros(2, dtype=torch.float64)
    for batch in micro:
        with engine.autocast():
            loss = task.loss(engine.module, batch) / num_targets
        engine.backward(loss, last=False)
        scale = num_targets / max(1, task.num_targets(batch))
        for bucket, old in zip(buckets, before, strict=True):
            assert bucket.gradients is not None
            squares[0] += float((bucket.gradients - old).norm().double() * scale) ** 2
            old.copy_(bucket.gradients)
        squares[1] += 1
    dist.all_reduce(squares)
    return float(squares[0] / squares[1])


def main() -> None:
    recipe = load(Recipe, Path(sys.argv[1]))
    keep_memory()
    with world() as here:
        found = _measure(recipe, here, int(sys.argv[3]), int(sys.argv[4]))
        if here.rank == 0:
            write_atomically(Path(sys.argv[2]), json.dumps(found))


if __name__ == "__main__":
    main()

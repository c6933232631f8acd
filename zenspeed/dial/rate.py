"""How fast this machine trains, measured in a second or two: two models, a small and a larger one, for a few updates each.

Time of an update is taken to be linear: its passes in the tokens and in the operations of a token, what comes after them in
the weights and in the operations of Muon. Two models give the four numbers; processes, threads, lanes, messages and contention
are in them, as all ranks measure at once, through the engine that training uses.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.data.batch import Batch, batch_of_windows
from zenspeed.parallel.mesh import World
from zenspeed.plan.measure import untrained
from zenspeed.plan.work import Shape
from zenspeed.recipe import Recipe

WARM_UP, UPDATES = 1, 4


class Rate(NamedTuple):
    """Seconds, of all ranks at work together."""

    token: float
    """Of the passes for a token, whatever the model."""
    flop: float
    """Of the passes for an operation of a token."""
    weight: float
    """Of sums over ranks, clipping and optimizers, for a weight."""
    muon: float
    """Of the same, for an operation of Muon's iteration."""
    error: float = 0.0
    """Standard error of an update's time, as a share of it."""

    def update_seconds(self, shape: Shape, tokens: float) -> float:
        """An update from a batch of `tokens` tokens."""
        passes = tokens * (self.token + self.flop * shape.flops_per_token())
        return passes + self.weight * shape.weights + self.muon * muon_flops(shape)

    def evaluation_seconds(self, shape: Shape, tokens: float) -> float:
        """A forward over `tokens` tokens, a third of the passes."""
        return tokens * (self.token + self.flop * shape.flops_per_token()) / 3

    @property
    def flops_per_second(self) -> float:
        """Of large models."""
        return 1 / self.flop


class Probe(NamedTuple):
    """What one model took, in seconds: the passes for a token, and what comes after them."""

    shape: Shape
    token_seconds: float
    update_seconds: float
    error: float = 0.0
    """Standard error of both together, as a share."""


def muon_flops(shape: Shape) -> float:
    """Operations of Muon's five iterations on the matrices of the blocks: for (m, n), m the smaller, 5 · (4 m² n + 2 m³)."""
    c = shape.width
    attention = ((c, (shape.heads + 2 * shape.kv_heads) * shape.head), (shape.heads * shape.head, c))
    matrices = (*attention, (c, shape.ups * shape.inner), (shape.inner, c))
    return 5.0 * shape.layers * sum(4 * min(p) ** 2 * max(p) + 2 * min(p) ** 3 for p in matrices)


def measure(small: Recipe, large: Recipe, vocab_size: int, here: World, seconds: float) -> Rate:
    """The rate, from two resolved recipes that differ in their model, in about `seconds`. The same on all ranks."""
    return fit(*(_probe(recipe, vocab_size, here, seconds / 2) for recipe in (small, large)))


def fit(small: Probe, large: Probe) -> Rate:
    """The line through two probes and nothing; noise can make no number negative, nor a large model the faster one."""
    f0, f1 = small.shape.flops_per_token(), large.shape.flops_per_token()
    through_nothing = large.token_seconds / f1
    slope = (large.token_seconds - small.token_seconds) / (f1 - f0)
    flop = min(through_nothing, max(0.5 * through_nothing, slope))
    weight, muon = _two_parts(
        (small.shape.weights, muon_flops(small.shape), small.update_seconds),
        (large.shape.weights, muon_flops(large.shape), large.update_seconds),
    )
    return Rate(max(0.0, large.token_seconds - flop * f1), flop, weight, muon, max(small.error, large.error))


def _two_parts(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """x and y, not below 0, of a[0] x + a[1] y = a[2] and the same with b; where they cannot be, b alone is kept to."""
    determinant = a[0] * b[1] - b[0] * a[1]
    if determinant:
        x, y = (a[2] * b[1] - b[2] * a[1]) / determinant, (a[0] * b[2] - b[0] * a[2]) / determinant
        if x >= 0 and y >= 0:
            return x, y
        return (0.0, b[2] / b[1]) if x < 0 else (b[2] / b[0], 0.0)
    return b[2] / b[0], 0.0


def _probe(recipe: Recipe, vocab_size: int, here: World, seconds: float) -> Probe:
    dtype = torch.bfloat16 if recipe.train.half else torch.float32
    _, engine = untrained(recipe, vocab_size, dtype, here, recipe.train.lanes or 1)
    share, micro = recipe.train.batch_size // here.size, recipe.train.micro_batch_size or 1
    tokens = torch.randint(vocab_size, (share, recipe.model.context + 1)).numpy()
    batches = [batch_of_windows(tokens[i : i + micro], -1, True) for i in range(0, share, micro)]
    targets = float(recipe.train.batch_size * recipe.model.context)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        inputs: dict[str, Any] = {name: value.to(here.device) for name, value in batch.inputs.items()}
        return module(**inputs, targets=batch.targets.to(here.device))

    passes, updates = [], []
    end = time.perf_counter() + seconds
    for step in range(WARM_UP + UPDATES):
        start = time.perf_counter()
        float(engine.accumulate(batches, loss, targets))
        middle = time.perf_counter()
        engine.update()
        passes.append(middle - start)
        updates.append(time.perf_counter() - middle)
        late = torch.tensor(float(time.perf_counter() > end))
        dist.all_reduce(late)
        if step and late:
            break
    warm = slice(min(WARM_UP, len(passes) - 1), None)
    both = [a + b for a, b in zip(passes[warm], updates[warm], strict=True)]
    medians = [statistics.median(passes[warm]) / targets, statistics.median(updates[warm])]
    found = torch.tensor([*medians, _error(both)], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return Probe(Shape(recipe.model, vocab_size), *found.tolist())


def _error(seconds: list[float]) -> float:
    """Standard error of the mean as a share of it; where there is one value alone, a tenth."""
    if len(seconds) < 2:
        return 0.1
    return statistics.stdev(seconds) / statistics.mean(seconds) / len(seconds) ** 0.5

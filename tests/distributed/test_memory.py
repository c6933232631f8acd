"""Too little memory: the update is made again with smaller micro-batches, on all ranks, and nothing else changes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.ranks import run_ranks
from zenspeed.engine import Engine
from zenspeed.memory import OutOfMemory
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig

SAID = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
CONTEXT, VOCABULARY, ROWS, STEPS = 8, 31, 8, 5
Curve = list[tuple[float, float]]
Batch = tuple[Tensor, Tensor]
FAILURES = {(1, 0, "forward"), (3, 1, "backward")}
"""(step, micro-batch, where) at which the last rank has too little memory, of those with micro-batches of 4."""


def _no_memory(*arguments: Any) -> None:
    raise MemoryError


class _Fail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError(SAID)


def curve(stage: int, shard: int | None, lanes: int, fail: bool) -> tuple[Curve, int]:
    """(loss, gradient norm) of every step, and how often an update was made again."""
    here = start_world()
    model = Transformer(ModelConfig(layers=2, width=16, heads=2, context=CONTEXT, init="gpt2"), VOCABULARY)
    model.init_weights(3)
    plans = plan_optimizers(model, OptimConfig(name="adamw", lr=3e-3))
    engine = Engine(model, plans, build_mesh(here, shard), ZeroOptions(stage=stage, bucket_elements=3_000), lanes=lanes)
    generator = torch.Generator().manual_seed(0)
    out: Curve = []
    again = 0
    for step in range(STEPS):
        data = torch.randint(VOCABULARY, (ROWS * here.size, CONTEXT + 1), generator=generator)
        rows = data[here.rank * ROWS : (here.rank + 1) * ROWS]
        seen = itertools.count()

        def loss_sum(module: nn.Module, batch: Batch, step: int = step, seen: Any = seen) -> Tensor:
            number, last = next(seen), here.rank == here.size - 1
            where = {w for s, m, w in FAILURES if fail and last and (s, m) == (step, number) and len(batch[0]) == 4}
            if not where:
                return module(batch[0], targets=batch[1])
            second = module.get_submodule("blocks.1")
            if "forward" in where:
                handle = second.register_forward_hook(_no_memory)
            else:
                handle = second.register_forward_hook(lambda m, a, y: _Fail.apply(y))
            try:
                return module(batch[0], targets=batch[1])
            finally:
                handle.remove()

        def micro(size: int, rows: Tensor = rows) -> list[Batch]:
            return [(part[:, :-1], part[:, 1:]) for part in rows.split(size)]

        targets = float(ROWS * CONTEXT * here.size)
        try:
            loss, update = engine.train_step(micro(4), loss_sum, targets, 1.0, lambda: micro(1)[0])
        except OutOfMemory:
            again += 1
            loss, update = engine.train_step(micro(2), loss_sum, targets, 1.0, lambda: micro(1)[0])
        out.append((loss, update.grad_norm))
    return out, again


def curves(layouts: list[tuple[int, int | None, int]]) -> list[tuple[tuple[Curve, int], tuple[Curve, int]]]:
    return [(curve(*layout, fail=False), curve(*layout, fail=True)) for layout in layouts]


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [(1, [(1, None, 1), (3, None, 1), (1, None, 2)]), (2, [(s, None, 1) for s in range(4)]), (4, [(2, 2, 1), (3, 2, 1)])],
)
def test_all_ranks_make_the_update_again(ranks: int, layouts: list[tuple[int, int | None, int]]) -> None:
    """Stages 0-3, hybrid, and lanes; in the middle of a forward, and of the last backward, of one rank alone."""
    for results in run_ranks(ranks, curves, layouts):
        for (plain, none), (disturbed, again) in results:
            assert (none, again) == (0, 2)
            for one, other in zip(disturbed, plain, strict=True):
                assert one == pytest.approx(other, rel=1e-5)


def test_recomputing_at_every_stage() -> None:
    for results in run_ranks(2, recomputed, [0, 3]):
        for kept, again, held, held_again in results:
            assert again == kept
            assert held_again < held / 2


def recomputed(stages: list[int]) -> list[tuple[list[float], list[float], int, int]]:
    """Losses and elements kept for backward, without and with recomputation."""
    out = []
    for stage in stages:
        both: list[tuple[list[float], int]] = []
        for recompute in (False, True):
            here = start_world()
            model = Transformer(ModelConfig(layers=4, width=16, heads=2, context=CONTEXT), VOCABULARY)
            model.init_weights(3)
            model.recompute = recompute
            plans = plan_optimizers(model, OptimConfig(name="adamw", lr=3e-3))
            engine = Engine(model, plans, build_mesh(here), ZeroOptions(stage=stage))
            curve, kept = [], 0

            def pack(x: Tensor) -> Tensor:
                nonlocal kept
                kept += x.numel()
                return x

            data = torch.randint(VOCABULARY, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(here.rank))
            for _ in range(3):
                kept = 0

                def loss_sum(module: nn.Module, rows: Tensor) -> Tensor:
                    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                        return module(rows[:, :-1], targets=rows[:, 1:])

                curve.append(engine.train_step([data], loss_sum, 8.0 * CONTEXT, 1.0)[0])
            both.append((curve, kept))
        (a, kept_a), (b, kept_b) = both
        out.append((a, b, kept_a, kept_b))
    return out

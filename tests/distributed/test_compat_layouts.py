"""A plain nn.Module through `initialize`: every layout equals one process, in loss and gradient norm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_ranks

pytest.importorskip("zenspeed.compat.deepspeed_config")

STEPS, ROWS = 20, 16
Curve = list[tuple[float, float]]
CASES = list(itertools.product(["fp32", "bf16"], ["AdamW", "SGD"], [0.0, 0.5]))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 32), nn.LayerNorm(32), nn.Linear(32, 4))


def train(stage: int, accumulation: int, precision: str, optimizer: str, clip: float, plain: bool = False) -> Curve:
    """(mean loss of the global batch, gradient norm) of every step; the data is the same whatever the layout."""
    import torch.distributed as dist

    from zenspeed.compat.deepspeed import initialize

    world, rank = dist.get_world_size(), dist.get_rank()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": ROWS // world // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "optimizer": {"type": optimizer, "params": {"lr": {"AdamW": 1e-2, "SGD": 0.05}[optimizer]}},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
    }
    engine, _, _, _ = initialize(model=make_model(), config=config)
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(16, 4, generator=generator)
    losses, norms = torch.zeros(STEPS), []
    for step in range(STEPS):
        x = torch.randn(ROWS, 16, generator=generator)
        y = torch.tanh(x @ truth)
        share = ROWS // world
        mine = slice(rank * share, (rank + 1) * share)
        for inputs, targets in zip(x[mine].chunk(accumulation), y[mine].chunk(accumulation), strict=True):
            output = engine(inputs.bfloat16() if precision == "bf16" else inputs)
            loss = (output.float() - targets).square().mean()
            losses[step] += loss.detach() / accumulation / world
            loss.backward() if plain else engine.backward(loss)
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    dist.all_reduce(losses)
    assert (engine.global_steps, engine.micro_steps) == (STEPS, STEPS * accumulation)
    return list(zip(losses.tolist(), norms, strict=True))


def train_many(layouts: list[tuple[Any, ...]]) -> list[Curve]:
    return [train(*layout) for layout in layouts]


def difference(ours: Curve, reference: Curve) -> float:
    return max(abs(a - b) / abs(b) for x, y in zip(ours, reference, strict=True) for a, b in zip(x, y, strict=True))


def layouts() -> list[tuple[Any, ...]]:
    return [(stage, cut, *case) for stage, cut, case in itertools.product(range(4), (1, 2, 4), CASES)]


@pytest.fixture(scope="module")
def one_process() -> dict[tuple[Any, ...], Curve]:
    """One process, stage 0, accumulation 1, 2, 4 and 8: four orders of summation."""
    points = [(0, cut, *case) for cut in (1, 2, 4, 8) for case in CASES]
    return dict(zip(points, run_ranks(1, train_many, points)[0], strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layout_equals_one_process(one_process: dict[tuple[Any, ...], Curve], ranks: int) -> None:
    """fp32 within 1e-5; bf16 within 2 × the most that one process shows between two orders of summation, in any case."""
    grid = layouts()
    half = [case for case in CASES if case[0] == "bf16"]
    spread = max(difference(one_process[(0, cut, *c)], one_process[(0, 1, *c)]) for c in half for cut in (2, 4, 8))
    for layout, curve in zip(grid, run_ranks(ranks, train_many, grid, timeout=400.0)[0], strict=True):
        once = one_process[(0, 1, *layout[2:])]
        limit = 1e-5 if layout[2] == "fp32" else 2 * spread
        assert once[-1][0] < 0.8 * once[0][0], "the reference does not learn"
        assert difference(curve, once) < limit, (ranks, layout, difference(curve, once), limit)


def test_plain_backward_is_the_same(one_process: dict[tuple[Any, ...], Curve]) -> None:
    grid = [(stage, 2, "fp32", "SGD", 0.5, True) for stage in range(4)]
    for layout, curve in zip(grid, run_ranks(2, train_many, grid)[0], strict=True):
        assert difference(curve, one_process[(0, 1, *layout[2:5])]) < 1e-5, layout

"""Every layout equals one process: same losses and gradient norms for stage × ranks × accumulation × optimizer × precision."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.ranks import run_ranks
from zenspeed.engine import Engine
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig

STEPS, BATCH, CONTEXT, VOCABULARY = 20, 8, 16, 61
Curve = list[tuple[float, float]]


def train(stage: int, accumulation: int, dtype: str, optimizer: str, clip: float | None, shard: int | None) -> Curve:
    """(loss, gradient norm) of every step, on data that is the same whatever the layout."""
    world = start_world()
    model = Transformer(ModelConfig(layers=2, width=32, heads=2, context=CONTEXT, init="gpt2"), VOCABULARY)
    model.init_weights(3)
    mesh = build_mesh(world, shard)
    rate = {"adamw": 3e-3, "sgd": 0.1, "muon": 0.01}[optimizer]
    config = OptimConfig(name=optimizer, lr=rate, weight_decay=0.1)  # type: ignore[arg-type]
    options = ZeroOptions(stage=stage, bucket_elements=9_000)
    engine = Engine(
        model,
        plan_optimizers(model, config, getattr(torch, dtype)),
        mesh,
        options,
        compute_dtype=getattr(torch, dtype),
        clip=clip,
    )
    generator = torch.Generator().manual_seed(0)
    curve: Curve = []
    for _ in range(STEPS):
        data = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
        data[:, 1::2] = data[:, 0:-1:2]  # something to learn
        targets = data[:, 1:].clone()
        targets[0, 3:] = -100  # rows of unequal length: a mean of means would be wrong
        share = BATCH // world.size
        mine = slice(world.rank * share, (world.rank + 1) * share)
        micro = list(zip(data[mine, :-1].chunk(accumulation), targets[mine].chunk(accumulation), strict=True))
        loss, update = engine.train_step(micro, loss_sum, float((targets != -100).sum()), lr=1.0)
        curve.append((loss, update.grad_norm))
    return curve


def loss_sum(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return module(batch[0], targets=batch[1])


def most_whole_gradients(stage: int) -> tuple[int, int]:
    """Buckets that had whole gradients at a time during a backward, at most, and how many buckets there are."""
    world = start_world()
    model = Transformer(ModelConfig(layers=4, width=32, heads=2, context=CONTEXT, init="gpt2"), VOCABULARY)
    options = ZeroOptions(stage=stage, bucket_elements=9_000)
    engine = Engine(model, plan_optimizers(model, OptimConfig(name="adamw"), torch.float32), build_mesh(world, None), options)
    buckets, most = engine.zero.trainable, 0

    def count(parameter: Tensor) -> None:
        nonlocal most
        most = max(most, sum(bucket.gradients is not None for bucket in buckets))

    for bucket in buckets:
        for slot in bucket.slots:
            slot.parameter.register_post_accumulate_grad_hook(count)
    tokens = torch.randint(VOCABULARY, (2, CONTEXT + 1))
    engine.train_step([(tokens[:, :-1], tokens[:, 1:])], loss_sum, 2.0 * CONTEXT * world.size, lr=1.0)
    return most, len(buckets)


@pytest.mark.parametrize("ranks", [1, 2])
def test_whole_gradients_are_given_back_while_backward_goes_on(ranks: int) -> None:
    # Two, and the one that is being filled; at stage 3 a block has two, one of matrices and one of vectors.
    for stage, allowed in ((2, 3), (3, 6)):
        most, buckets = run_ranks(ranks, most_whole_gradients, stage)[0]
        assert most <= allowed < buckets, stage


def train_many(layouts: list[tuple[Any, ...]]) -> list[Curve]:
    return [train(*layout) for layout in layouts]


def largest_difference(ours: Curve, reference: Curve) -> float:
    assert len(ours) == len(reference) == STEPS
    return max(abs(a - b) / abs(b) for x, y in zip(ours, reference, strict=True) for a, b in zip(x, y, strict=True))


OPTIMIZERS = [("adamw", 0.5), ("sgd", None), ("muon", 0.5)]
"""And whether gradients are clipped; test_compat_layouts has every combination, on the same engine."""


def layouts(dtype: str, ranks: int, shard: int | None = None) -> list[tuple[Any, ...]]:
    """stage × accumulation × optimizer and clipping; four ranks and bf16 at one accumulation, the rest is in compat's."""
    cuts = [2] if ranks == 4 or dtype == "bfloat16" else [1, 2, 4]
    # Muon costs ten times the others: one accumulation is enough for it
    return [
        (stage, cut, dtype, *how, shard)
        for stage, cut, how in itertools.product([0, 1, 2, 3], cuts, OPTIMIZERS)
        if how[0] != "muon" or cut == cuts[-1]
    ]


@pytest.fixture(scope="module")
def one_process() -> dict[tuple[Any, ...], Curve]:
    """The reference: one process, stage 0. bf16 with accumulation 1 and 2, that is, two orders of summation."""
    points = [(0, cut, dtype, *how, None) for dtype in ("float32", "bfloat16") for cut in (1, 2) for how in OPTIMIZERS]
    return dict(zip(points, run_ranks(1, train_many, points)[0], strict=True))


@pytest.mark.parametrize(("ranks", "shard"), [(1, None), (2, None), (4, None), (4, 2)])
def test_fp32_layouts_equal_one_process(one_process: dict[tuple[Any, ...], Curve], ranks: int, shard: int | None) -> None:
    grid = layouts("float32", ranks, shard)
    for curves in run_ranks(ranks, train_many, grid):
        for layout, curve in zip(grid, curves, strict=True):
            reference = one_process[(0, 1, *layout[2:5], None)]
            assert reference[-1][0] < 0.9 * reference[0][0], "the reference does not learn"
            assert largest_difference(curve, reference) < 1e-5, (ranks, layout)


def test_bf16_layouts_differ_no_more_than_two_orders_of_summation(one_process: dict[tuple[Any, ...], Curve]) -> None:
    """The limit is 4 × what one process shows between accumulation 1 and 2, or 4e-3 if that is more."""
    grid = layouts("bfloat16", 2)
    curves = run_ranks(2, train_many, grid)[0]
    for layout, curve in zip(grid, curves, strict=True):
        once, twice = (one_process[(0, cut, *layout[2:5], None)] for cut in (1, 2))
        assert largest_difference(curve, once) < max(4 * largest_difference(twice, once), 4e-3), layout

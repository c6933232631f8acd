"""A dry run: the engine with its real buckets for one of thousands of ranks, on this machine, without data.

The model stands on torch's meta device (shapes without memory), the process group is torch's fake one (collectives that
return at once), so the code that shards, gathers and reduces is the code that trains; what it allocates and sends is counted.
One forward and backward of one micro-batch is run; the optimizer's state is counted from its slices, not stepped. Weights are
bf16 with fp32 masters, and the head gives whole logits, which training makes in chunks.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.engine import Engine
from zenspeed.models.build import build_model
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import World, build_mesh
from zenspeed.parallel.traffic import Call, Traffic
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe

STATES = {"AdamW": 2, "Muon": 1, "Adagrad": 1, "SGD": 1}
"""fp32 numbers of state an optimizer holds for a weight."""


class DryRun(NamedTuple):
    """Of one rank; bytes."""

    ranks: int
    weights: int
    """Parameters of the whole model."""
    weight_bytes: int
    """Of the weights between uses: a slice at stage 3."""
    gradient_bytes: int
    optimizer_bytes: int
    """fp32 masters and the optimizer's states."""
    activation_bytes: int
    """Kept from forward to backward, attention being one kernel that keeps no scores."""
    score_bytes: int
    """What attention keeps where it is plain products."""
    calls: list[Call]
    """Collectives of one micro-batch and update, as counted; the gather after the update is not among them."""
    seconds: float


@contextmanager
def _fake_world(ranks: int) -> Iterator[World]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield World(0, ranks, 0, torch.device("meta"))
    finally:
        dist.destroy_process_group()


def dry_run(recipe: Recipe, vocab_size: int, ranks: int) -> DryRun:
    """Builds and runs the recipe's model as rank 0 of `ranks`.

    Raises:
        InputError: the recipe's model is no decoder, or `ranks` do not fit its layout.
    """
    if recipe.model.architecture != "decoder":
        raise InputError(f"--dry-run: runs decoders, not model.architecture={recipe.model.architecture}")
    if dist.is_initialized():  # a process has one default group: the fake one gets a process of its own
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(dry_run, (recipe, vocab_size, ranks))
    began = time.perf_counter()
    with _fake_world(ranks) as world, torch.device("meta"):
        mesh = build_mesh(world, recipe.parallel.shard_ranks)
        model = build_model(recipe.model, vocab_size, "language", 0).to(torch.bfloat16)
        weights = sum(p.numel() for p in model.parameters())
        options = ZeroOptions(stage=recipe.parallel.zero)
        plans = plan_optimizers(model, recipe.optim, torch.bfloat16)
        engine = Engine(model, plans, mesh, options)
        traffic = Traffic()
        for bucket in engine.zero.trainable:
            bucket.traffic = traffic
        states = sum(
            STATES[type(optimizer).__name__] * tensor.numel() * 4
            for optimizer in engine.optimizers
            for group in optimizer.param_groups
            for tensor in group["params"]
        )
        masters = sum(b.master.numel() * 4 for b in engine.zero.trainable)
        stage = recipe.parallel.zero
        size = [b.slice_size if stage == 3 else b.size for b in engine.zero.trainable]
        gradients = [b.slice_size if stage >= 2 else b.size for b in engine.zero.trainable]
        tokens = torch.zeros(recipe.train.micro_batch_size or 1, recipe.model.context, dtype=torch.int64)
        kept, scores = _forward_backward(engine, model, tokens)
        return DryRun(
            ranks, weights, 2 * sum(size), 2 * sum(gradients), masters + states, kept, scores, traffic.calls(),
            time.perf_counter() - began,
        )  # fmt: skip


def _forward_backward(engine: Engine, model: nn.Module, tokens: Tensor) -> tuple[int, int]:
    """(bytes kept for backward without attention's scores, bytes of these)."""
    context = tokens.shape[1]
    held = {b.weights.untyped_storage()._cdata for b in engine.zero.trainable}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in held:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(tokens)
    sizes = [(t.shape[-2:] == (context, context), t.untyped_storage().nbytes()) for t in kept.values()]
    kept.clear()
    engine.backward(logits.sum(), last=True)
    return sum(n for scores, n in sizes if not scores), sum(n for scores, n in sizes if scores)

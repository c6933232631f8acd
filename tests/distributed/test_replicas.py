"""Copies of weights that differ by one bit: the parameter and the rank are named, at every stage that keeps copies."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from zenspeed.engine import Engine
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world
from zenspeed.parallel.replicas import compare
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig

Found = list[tuple[str, tuple[int, ...]]]


def flipped(layouts: list[tuple[int, int | None]], rank: int) -> list[tuple[Found, Found]]:
    """For each (stage, ranks a copy): what is found before and after a bit of rank `rank`'s copy has flipped."""
    out = []
    for stage, shard in layouts:
        model = Transformer(ModelConfig(layers=2, width=16, heads=2, context=8), 31)
        model.init_weights(0)
        mesh = build_mesh(start_world(), shard)
        engine = Engine(model, plan_optimizers(model, OptimConfig()), mesh, ZeroOptions(stage))
        before = [tuple(d) for d in compare(engine.zero)]
        bucket = engine.zero.buckets[0]
        name = bucket.slots[0].name
        if dist.get_rank() == rank:
            part = bucket.weight_slice if stage == 3 else bucket.weights[bucket.slots[0].offset :]
            name = next(bucket.pieces()).name if stage == 3 else name
            part.view(torch.int32)[3] ^= 1
        names = [name] * dist.get_world_size()
        dist.all_gather_object(names, name)
        found = [tuple(d) for d in compare(engine.zero)]
        assert [name for name, _ in found] == [names[rank]]
        out.append((before, found))
    return out


@pytest.mark.parametrize(
    ("ranks", "layouts", "named"),
    [
        (3, [(0, None), (1, None), (2, None)], (1,)),
        (2, [(0, None)], (0, 1)),  # one against one: nobody can tell which
        (4, [(3, 2), (1, 2)], None),
    ],
)
def test_a_bit_names_parameter_and_rank(
    ranks: int, layouts: list[tuple[int, int | None]], named: tuple[int, ...] | None
) -> None:
    everywhere = run_ranks(ranks, flipped, layouts, 1)
    assert all(found == everywhere[0] for found in everywhere), "all ranks are told the same"
    for (stage, _), (before, found) in zip(layouts, everywhere[0], strict=True):
        expected = named or ((1, 3) if stage == 3 else (1,))
        assert before == []
        assert len(found) == 1 and found[0][1] == expected, (stage, found)

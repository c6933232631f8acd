"""A checkpoint saved by any layout loads in any other; a rank that does not come is named; old ones are forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.distributed.test_layouts import loss_sum
from zenspeed.checkpoint import Checkpoint, Checkpointer, find_checkpoint, list_checkpoints
from zenspeed.config import InputError
from zenspeed.engine import Engine
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig


def make_engine(stage: int, optimizer: str, seed: int = 0) -> Engine:
    world = start_world()
    model = Transformer(ModelConfig(layers=2, width=16, heads=2, context=8, init="gpt2"), 31)
    model.init_weights(seed)
    config = OptimConfig(name=optimizer, lr=0.01)  # type: ignore[arg-type]
    return Engine(model, plan_optimizers(model, config), build_mesh(world), ZeroOptions(stage, bucket_elements=3_000))


def step(engine: Engine, seed: int) -> float:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(seed))
    mine = data[rank * 4 // ranks : (rank + 1) * 4 // ranks]
    return engine.train_step([(mine[:, :-1], mine[:, 1:])], loss_sum, 32.0, 1.0)[0]


Layout = tuple[int, str]  # stage, optimizer


def save(folder: str, layouts: list[Layout]) -> list[float]:
    """For each layout: trains three steps, saves, and gives the loss of the fifth."""
    out = []
    for stage, optimizer in layouts:
        engine = make_engine(stage, optimizer)
        for seed in range(3):
            step(engine, seed)
        checkpointer = Checkpointer(Path(folder) / f"{dist.get_world_size()}-{stage}-{optimizer}")
        checkpointer.save(3, engine.shards(), engine.scalars(), {"metric": None}, wait=True)
        dist.barrier()
        step(engine, 3)
        out.append(step(engine, 4))
    return out


def load(folder: str, layouts: list[Layout]) -> dict[str, float]:
    """The loss of the fifth step, from every checkpoint in `folder` in every layout."""
    out = {}
    for stage, optimizer in layouts:
        for saved in sorted(Path(folder).glob(f"*-{optimizer}")):
            engine = make_engine(stage, optimizer, seed=5)  # other weights, so that what was not loaded shows
            checkpoint = Checkpoint(list_checkpoints(saved)[-1])
            engine.load(checkpoint.read, checkpoint.scalars)
            step(engine, 3)
            out[f"{saved.name} on {dist.get_world_size()} ranks at stage {stage}"] = step(engine, 4)
    return out


def test_any_layout_loads_in_any_other(tmp_path: Path) -> None:
    layouts = {
        ranks: [(stage, optimizer) for stage in stages for optimizer in ("adamw", "muon", "sgd")]
        for ranks, stages in ((1, [0, 3]), (2, [0, 1, 3]), (4, [2, 3]))
    }
    losses = {}
    for ranks, mine in layouts.items():
        for layout, loss in zip(mine, run_ranks(ranks, save, str(tmp_path), mine)[0], strict=True):
            losses[layout[1]] = loss if ranks == 1 else losses[layout[1]]
            assert loss == pytest.approx(losses[layout[1]], rel=1e-5), (ranks, layout)
    for ranks, mine in layouts.items():
        for found in run_ranks(ranks, load, str(tmp_path), mine):
            assert len(found) == len(mine) * 7
            for name, loss in found.items():
                assert loss == pytest.approx(losses[name.split()[0].split("-")[-1]], rel=1e-5), name


def save_alone(folder: str) -> str:
    checkpointer = Checkpointer(Path(folder), wait_seconds=1.0)
    if dist.get_rank() == 1:
        return "gone"
    try:
        checkpointer.save(1, [], {}, {}, wait=True)
    except InputError as error:
        return str(error)
    return "saved"


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    assert "no files from rank 1" in run_ranks(2, save_alone, str(tmp_path))[0]
    assert not list(tmp_path.glob("step-*"))


def save_many(folder: str, metrics: list[float | None]) -> list[str]:
    checkpointer = Checkpointer(Path(folder), keep=2, keep_best=True)
    tensor = torch.zeros(4)
    for number, metric in enumerate(metrics):
        checkpointer.save(number, [("w", "weight", tensor.shape, 0, 4, tensor)], {}, {"metric": metric})
        tensor += 1  # the save must have copied: it is written in the background
    checkpointer.wait()
    kept = list_checkpoints(Path(folder))
    for checkpoint in kept:
        weights = Checkpoint(checkpoint).weights()["w"]
        assert weights.tolist() == [float(checkpoint.name[-2:])] * 4
    return [c.name for c in kept]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    folder: Any = tmp_path / "checkpoints"
    assert run_ranks(1, save_many, str(folder), [5.0, 1.0, 4.0, None, 3.0])[0] == [
        "step-00000001", "step-00000003", "step-00000004"
    ]  # fmt: skip
    assert find_checkpoint(tmp_path, "best").name == "step-00000001"
    assert (folder / "latest").read_text() == "step-00000004"

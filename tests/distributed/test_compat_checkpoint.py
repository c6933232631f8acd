"""Checkpoints of the engine: any ranks and stage load in any other; what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_ranks
from zenspeed.config import InputError


def start(stage: int, width: int = 24) -> Any:
    import zenspeed

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}}
    return zenspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)[0]


def updates(engine: Any, number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(engine.global_steps)
    for _ in range(number):
        loss = engine(torch.randn(4, 8, generator=generator)).square().mean()
        engine.backward(loss)
        engine.step()
    return {k: v.tolist() for k, v in engine.state_dict().items()}  # a tensor would end with its process


def save(folder: Path, stage: int) -> dict[str, Any]:
    engine = start(stage)
    updates(engine, 3)
    engine.save_checkpoint(folder, client_state={"epoch": 2, "pair": (1, 2.5), "by": {3: "x"}})
    return updates(engine, 2)


def resume(folder: Path, stage: int) -> tuple[dict[str, Any], Any, list[float], int]:
    engine = start(stage)
    path, client = engine.load_checkpoint(folder)
    assert path is not None and path.endswith("global_step3")
    weights = updates(engine, 2)
    return weights, client, engine.get_lr(), engine.global_steps


@pytest.mark.parametrize(("save_at", "load_at"), [((2, 3), (1, 0)), ((1, 0), (2, 3)), ((4, 2), (2, 1)), ((2, 1), (4, 3))])
def test_goes_on_in_another_layout(tmp_path: Path, save_at: tuple[int, int], load_at: tuple[int, int]) -> None:
    expected = run_ranks(save_at[0], save, tmp_path, save_at[1])[0]
    weights, client, lr, steps = run_ranks(load_at[0], resume, tmp_path, load_at[1])[0]
    assert client == {"epoch": 2, "pair": (1, 2.5), "by": {3: "x"}}
    assert (lr, steps) == ([pytest.approx(1e-4)], 5)
    for name, value in weights.items():
        assert torch.allclose(torch.tensor(value), torch.tensor(expected[name]), rtol=1e-5, atol=1e-6), name


def bad_use(folder: Path) -> list[str]:
    said = []
    engine = start(1)
    assert engine.load_checkpoint(folder) == (None, None)
    for action in (
        lambda: engine.save_checkpoint(folder, client_state={"args": [{"x": object()}]}),
        lambda: engine.load_checkpoint(folder, tag="nowhere"),
        lambda: (engine.save_checkpoint(folder), start(1, width=25).load_checkpoint(folder)),
    ):
        with pytest.raises(InputError) as caught:
            action()
        said.append(str(caught.value))
    return said


def test_wrong_use_is_named(tmp_path: Path) -> None:
    client, tag, model = run_ranks(1, bad_use, tmp_path)[0]
    assert client.startswith("client_state.args[0].x: a object cannot be saved")
    assert "no checkpoint nowhere" in tag
    assert "0.weight: here (25, 8), saved (24, 8)" in model


def only_rank_0(folder: Path) -> str:
    import torch.distributed as dist

    start(2).save_checkpoint(folder, tag="by-another-engine")  # whose answers must not be taken for this one's
    engine = start(2)
    engine.checkpoint_wait_seconds = 0.5
    if dist.get_rank() == 0:
        with pytest.raises(InputError) as caught:
            engine.save_checkpoint(folder)
        return str(caught.value)
    import time

    time.sleep(1.5)
    return ""


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    assert "rank 1 did not come in 0.5 s" in run_ranks(2, only_rank_0, tmp_path)[0]

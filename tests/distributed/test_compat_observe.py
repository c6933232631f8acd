"""What the config asks to be told of a run: monitors, times, traffic, FLOPs, memory."""

from __future__ import annotations

import csv
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_ranks
from tests.distributed.test_compat_engine import build, losses


def watched(folder: str) -> dict[str, Any]:
    """One engine with everything switched on: what it printed, wrote and counted."""
    from zenspeed.compat.comm import log_summary

    config = {
        "zero_optimization": {"stage": 2},
        "steps_per_print": 2,
        "wall_clock_breakdown": True,
        "memory_breakdown": True,
        "comms_logger": {"enabled": True},
        "flops_profiler": {"enabled": True, "profile_step": 2, "output_file": f"{folder}/flops.txt"},
        "csv_monitor": {"enabled": True, "output_path": folder, "job_name": "csv"},
        "tensorboard": {"enabled": True, "output_path": folder, "job_name": "events"},
    }
    out = io.StringIO()
    with redirect_stdout(out):
        engine = build(config)
        curve = losses(engine, 4)
        log_summary()
        engine.destroy()
    calls = [(c.op, c.num_bytes, c.calls) for c in engine._observer.traffic.calls()]
    weights = sum(b.size for b in engine.core.zero.buckets)
    return {"printed": out.getvalue(), "losses": curve, "calls": calls, "weights": weights}


def test_all_of_it_on_two_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(2, watched, str(tmp_path))
    plain = run_ranks(2, plain_losses)[0]
    assert first["losses"] == pytest.approx(plain, rel=1e-6)
    # Each of four updates reduces the gradients and gathers the weights, once a bucket.
    assert [(op, count) for op, _, count in first["calls"]] == [("all_gather", 4), ("reduce_scatter", 4)]
    assert first["calls"][0][1] == 4 * first["weights"]
    for words in ("time (ms) | fwd: ", "bwd_allreduce: ", "memory (MiB), rank 0 | weights", "samples/s=", "busbw"):
        assert words in first["printed"], words
    assert "memory (MiB), rank 1" in second["printed"]
    assert "samples/s" not in second["printed"]
    rows = list(csv.reader((tmp_path / "csv" / "Train_Samples_train_loss.csv").open()))
    assert rows[0] == ["step", "Train_Samples_train_loss"]
    assert [int(r[0]) for r in rows[1:]] == [8, 16, 24, 32]
    assert [float(r[1]) for r in rows[1:]] == pytest.approx(plain, rel=1e-6)
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    assert "FLOPs profile of step 2" in (tmp_path / "flops.txt").read_text()


def plain_losses() -> list[float]:
    return losses(build({"zero_optimization": {"stage": 2}}), 4)


def test_flops_of_a_module_are_those_of_its_products() -> None:
    from zenspeed.compat.flops import get_model_profile

    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 2)))
    out = io.StringIO()
    with redirect_stdout(out):
        flops, macs, parameters = get_model_profile(module, input_shape=(4, 8), as_string=False)
    assert macs == 4 * (8 * 16 + 16 * 32 + 32 * 2)
    assert flops == 2 * macs
    assert parameters == sum(p.numel() for p in module.parameters())
    inner = next(line for line in out.getvalue().splitlines() if line.endswith("2 (Sequential)"))
    assert f"{100 * (16 * 32 + 32 * 2) / (8 * 16 + 16 * 32 + 32 * 2):.1f}%" in inner
    assert not module._forward_hooks and not module[0]._forward_pre_hooks


def test_a_monitor_that_is_not_installed_is_named() -> None:
    import importlib.util

    from zenspeed.errors import InputError

    for section, package in (("wandb", "wandb"), ("mlflow", "mlflow")):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(InputError, match=f"pip install {package}"):
                from zenspeed.compat.deepspeed_config import load
                from zenspeed.compat.monitor import Monitor

                Monitor(load({"train_batch_size": 1, section: {"enabled": True}}, world_size=1), 0)


# Memory ---------------------------------------------------------------------------------------------------------------


def held(stage: int) -> tuple[dict[str, int], int]:
    """Bytes a rank holds between updates, and the number of parameters."""
    import zenspeed
    from zenspeed.compat.memory import model_states

    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)])
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW"},
    }
    engine = zenspeed.initialize(model=module, config=config)[0]
    for _ in range(2):
        loss = engine(torch.randn(2, 256, dtype=torch.bfloat16)).float().square().mean()
        engine.backward(loss)
        engine.step()
    return model_states(engine.core), sum(s.size for b in engine.core.zero.buckets for s in b.slots)


def held_at_all_stages() -> list[tuple[dict[str, int], int]]:
    return [held(stage) for stage in range(4)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_memory_follows_the_formula(ranks: int) -> None:
    from zenspeed.compat.memory import formula

    for by_stage in run_ranks(ranks, held_at_all_stages):
        for stage, (parts, parameters) in enumerate(by_stage):
            expected = formula(parameters, stage, ranks)
            for name, value in parts.items():
                assert value == pytest.approx(expected[name], rel=0.03), (ranks, stage, name)


# A rank whose loss touches nothing that is trained ----------------------------------------------------------------------


class TwoPaths(nn.Module):
    """`trained` is given to the optimizer, `other` is not."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.other = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, trained: bool) -> torch.Tensor:
        return (self.trained if trained else self.other)(x)


def one_rank_goes_elsewhere(stage: int) -> list[float]:
    import torch.distributed as dist

    import zenspeed

    torch.manual_seed(0)
    module = TwoPaths()
    optimizer = torch.optim.SGD(module.trained.parameters(), lr=1.0)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}
    engine = zenspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    engine.backward(engine(torch.ones(1, 4), dist.get_rank() == 0).sum())
    engine.step()
    engine.backward(engine(torch.ones(1, 4), True).sum())
    engine.step()
    return engine.state_dict()["module.trained.weight"].flatten().tolist()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_without_gradients_keeps_nobody_waiting(stage: int) -> None:
    torch.manual_seed(0)
    before = TwoPaths().trained.weight.flatten()
    for after in run_ranks(2, one_rank_goes_elsewhere, stage, timeout=60):
        assert after == pytest.approx((before - 0.5 - 1.0).tolist(), rel=1e-6)

"""`zenspeed.initialize` on one process: every configuration that should not change the losses does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_ranks

VARIANTS: dict[str, dict[str, Any]] = {
    "stage 0": {},
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 3": {"zero_optimization": {"stage": 3}},
    "optimizer on the CPU": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "weights on the CPU": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
    "hybrid": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 1}},
    "predivided": {"gradient_predivide_factor": 2.0, "prescale_gradients": True},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}},
    "autocast": {"torch_autocast": {"enabled": True}},
}
HALF = {"bf16", "fp16", "autocast"}


def build(config: dict[str, Any], **more: Any) -> Any:
    import zenspeed

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)))
    base = {"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}
    return zenspeed.initialize(model=module, config={**base, **config}, **more)[0]


def losses(engine: Any, steps: int = 5) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(4, 8, generator=generator), torch.randint(2, (4,), generator=generator)
    half = torch.bfloat16 if engine.bfloat16_enabled() else torch.float16 if engine.fp16_enabled() else torch.float32
    x = x.to(half)
    out = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(engine(x).float(), y)
        engine.backward(loss)
        engine.step()
        out.append(loss.item())
    return out


def all_variants() -> dict[str, list[float]]:
    return {name: losses(build(config)) for name, config in VARIANTS.items()}


def test_variants_give_the_same_losses() -> None:
    found = run_ranks(1, all_variants)[0]
    reference = found["stage 0"]
    assert reference[-1] < reference[0]
    for name, curve in found.items():
        assert curve == pytest.approx(reference, rel=5e-3 if name in HALF else 1e-6), name


def saved_and_loaded(folder: str) -> tuple[dict[str, Any], list[float], list[float]]:
    first = build({"zero_optimization": {"stage": 2}})
    losses(first)
    first.save_checkpoint(folder, tag="a", client_state={"epoch": [1, 2]})
    second = build({"zero_optimization": {"stage": 3}})
    _, client = second.load_checkpoint(folder)
    return client, losses(first), losses(second)


def test_saved_at_one_stage_goes_on_at_another(tmp_path: Path) -> None:
    client, ours, theirs = run_ranks(1, saved_and_loaded, str(tmp_path))[0]
    assert client["epoch"] == [1, 2]
    assert ours == pytest.approx(theirs, rel=1e-6)


def changed_weights() -> tuple[float, float]:
    import zenspeed

    engine = build({"zero_optimization": {"stage": 3}})
    losses(engine, 1)
    parameter = next(engine.module.parameters())
    utils = zenspeed.utils
    utils.safe_set_full_fp32_param(parameter, torch.full_like(utils.safe_get_full_fp32_param(parameter), 0.5))
    state = utils.safe_get_full_optimizer_state(parameter, "exp_avg")
    assert state.abs().sum() > 0
    utils.safe_set_full_optimizer_state(parameter, torch.zeros_like(state), "exp_avg")
    with zenspeed.zero.GatheredParameters([parameter]):
        seen = float(parameter.mean())
    return seen, float(utils.safe_get_full_optimizer_state(parameter, "exp_avg").abs().sum())


def test_weights_and_states_of_a_slice_are_set_whole() -> None:
    assert run_ranks(1, changed_weights)[0] == (0.5, 0.0)


def other_ways() -> dict[str, list[float]]:
    def plain(engine: Any) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(4, 8, generator=generator), torch.randint(2, (4,), generator=generator)
        out = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(engine(x), y)
            loss.backward()
            engine.step()
            out.append(loss.item())
        return out

    make = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)  # noqa: E731
    return {"config": losses(build({})), "plain backward": plain(build({})), "callable": losses(build({}, optimizer=make))}


def test_plain_backward_and_a_callable_optimizer() -> None:
    found = run_ranks(1, other_ways)[0]
    assert found["plain backward"] == pytest.approx(found["config"], rel=1e-6)
    assert found["callable"] == pytest.approx(found["config"], rel=1e-6)

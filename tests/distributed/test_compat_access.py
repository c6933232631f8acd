"""Checkpoints as plain weights, this rank's part of a parameter, and names by which scripts find things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.distributed.ranks import run_ranks
from tests.distributed.test_compat_engine import build, losses
from zenspeed.errors import InputError


def saved_masters(folder: str, stage: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from zenspeed.compat.utils import safe_get_full_fp32_param

    engine = build({"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}})
    losses(engine, 2)
    engine.save_checkpoint(folder)
    masters = {n: safe_get_full_fp32_param(p) for n, p in engine.module.named_parameters()}
    half = engine._zero3_consolidated_16bit_state_dict()
    return (
        {n: m.numpy() for n, m in masters.items() if m is not None},
        None if half is None else {n: h.float().numpy() for n, h in half.items()},
    )


def test_masters_of_a_checkpoint_as_one_file(tmp_path: Path) -> None:
    from zenspeed.compat.zero_to_fp32 import load_state_dict_from_zero_checkpoint, main

    (arrays, half), (_, none) = run_ranks(2, saved_masters, str(tmp_path / "saved"), 3)
    masters = {n: torch.from_numpy(a) for n, a in arrays.items()}
    main([str(tmp_path / "saved"), str(tmp_path / "out")])
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == masters.keys()
    for name, master in masters.items():
        assert written[name].dtype == torch.float32
        assert torch.equal(written[name], master)
    assert none is None
    assert half is not None and (half["0.weight"] == masters["0.weight"].bfloat16().float().numpy()).all()
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)))
    assert torch.equal(load_state_dict_from_zero_checkpoint(module, tmp_path / "saved")[0].weight, masters["0.weight"])
    with pytest.raises(InputError, match=r"of another model:\n  1\.weight: not saved"):
        load_state_dict_from_zero_checkpoint(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16)), tmp_path / "saved")
    with pytest.raises(SystemExit, match="no checkpoint elsewhere; there are: global_step2"):
        main([str(tmp_path / "saved"), str(tmp_path / "out"), "--tag", "elsewhere"])


def local_parts(stage: int) -> dict[str, Any]:
    from zenspeed.compat import utils

    engine = build({"zero_optimization": {"stage": stage}})
    losses(engine, 2)
    parameters = dict(engine.module.named_parameters())
    weight = parameters["2.0.weight"]
    whole = utils.safe_get_full_fp32_param(weight)
    mine = utils.safe_get_local_fp32_param(weight)
    state = utils.safe_get_local_optimizer_state(weight, "exp_avg")
    assert whole is not None and mine is not None and state is not None
    whole_state = utils.safe_get_full_optimizer_state(weight, "exp_avg")
    utils.safe_set_local_fp32_param(weight, torch.full_like(mine, 7.0))
    after = utils.safe_get_full_fp32_param(weight)
    found = {"whole": whole, "mine": mine, "state": state, "whole_state": whole_state, "after": after}
    return {name: tensor.flatten().tolist() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("stage", [1, 3])
def test_the_parts_of_all_ranks_are_the_whole(stage: int) -> None:
    first, second = run_ranks(2, local_parts, stage)
    assert first["mine"] + second["mine"] == first["whole"]
    assert first["state"] + second["state"] == first["whole_state"]
    assert set(first["after"]) == {7.0}


def other_groups(folder: str) -> str:
    import zenspeed

    engine = build({})
    losses(engine, 1)
    engine.save_checkpoint(folder)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)))
    groups = [{"params": list(module[0].parameters())}, {"params": list(module[2].parameters())}]
    config = {"train_micro_batch_size_per_gpu": 4}
    other = zenspeed.initialize(model=module, optimizer=torch.optim.AdamW(groups), config=config)[0]
    with pytest.raises(InputError) as error:
        other.load_checkpoint(folder)
    return str(error.value)


def test_groups_of_another_number_are_refused(tmp_path: Path) -> None:
    message = run_ranks(1, other_groups, str(tmp_path))[0]
    assert "saved with 1 parameter groups, here it has 2" in message


def without_frozen(folder: str) -> list[float]:
    engine = frozen_engine()
    engine.save_checkpoint(folder, exclude_frozen_parameters=True)
    other = frozen_engine()
    with torch.no_grad():
        other.module[0].weight.fill_(3.0)
    path, _ = other.load_checkpoint(folder)
    assert path is not None
    return other.module[0].weight.flatten().tolist()[:2]


def frozen_engine() -> Any:
    import zenspeed

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine = zenspeed.initialize(model=module, config=config)[0]
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    return engine


def test_frozen_parameters_left_out_stay_as_they_are(tmp_path: Path) -> None:
    assert run_ranks(1, without_frozen, str(tmp_path))[0] == [3.0, 3.0]


def test_names_by_which_scripts_find_things() -> None:
    import zenspeed

    assert zenspeed.runtime.lr_schedules.WarmupLR
    assert callable(zenspeed.runtime.utils.see_memory_usage)
    assert callable(zenspeed.zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint)
    with pytest.raises(AttributeError, match="lr_schedules"):
        _ = zenspeed.runtime.nothing

"""Schedules against the values that DeepSpeed 0.19.8 itself gave.

data/deepspeed_schedules.json was written by running deepspeed.runtime.lr_schedules of that release: `lr[k]` are the rates of
the groups after step k + 1, `start` those after construction, `betas[k]` the first beta of each group and then the second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zenspeed.compat.lr_schedules import VALID_LR_SCHEDULES, WarmupLR, build
from zenspeed.errors import InputError

CASES = json.loads((Path(__file__).parent / "data" / "deepspeed_schedules.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.filterwarnings("ignore:.*(less than warmup|no betas)")


def optimizer_of(rates: list[float], name: str = "adam") -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.Adam(groups) if name == "adam" else torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['schedule']}-{c['params']}")
def test_equals_deepspeed(case: dict[str, Any]) -> None:
    optimizer = optimizer_of(case["base_lrs"], case["optimizer"])
    schedule = build(case["schedule"], case["params"], optimizer)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(case["start"], rel=1e-9)
    for k in range(40):
        schedule.step()
        if str(k) in case["lr"]:
            assert schedule.get_last_lr() == [g["lr"] for g in optimizer.param_groups]
            assert schedule.get_last_lr() == pytest.approx(case["lr"][str(k)], rel=1e-9, abs=1e-15), k
        if str(k) in case.get("betas", {}):
            betas = [g["betas"][0] for g in optimizer.param_groups] + [optimizer.param_groups[0]["betas"][1]]
            assert betas == pytest.approx(case["betas"][str(k)], rel=1e-9), k
    assert schedule.state_dict() == {"last_batch_iteration": 39}


def test_every_schedule_is_compared() -> None:
    assert {c["schedule"] for c in CASES} == set(VALID_LR_SCHEDULES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['schedule']}-{c['params']}")
def test_a_state_goes_on_where_it_was(case: dict[str, Any]) -> None:
    first, second = optimizer_of(case["base_lrs"], case["optimizer"]), optimizer_of(case["base_lrs"], case["optimizer"])
    run, resumed = (build(case["schedule"], case["params"], o) for o in (first, second))
    for _ in range(7):
        run.step()
    resumed.load_state_dict(run.state_dict())
    for _ in range(9):
        run.step()
        resumed.step()
    assert [g["lr"] for g in first.param_groups] == [g["lr"] for g in second.param_groups]


def test_torch_schedules_by_name() -> None:
    optimizer = optimizer_of([0.5])
    schedule = build("StepLR", {"step_size": 1, "gamma": 0.1}, optimizer)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("type_", "params", "message"),
    [
        ("WarmupLr", {}, "did you mean WarmupLR"),
        ("LRScheduler", {}, "is not a schedule"),
        ("WarmupLR", {"warmup_steps": 3}, "did you mean warmup_num_steps"),
        ("WarmupLR", {"warmup_num_steps": 0}, "positive integer, it is 0"),
        ("WarmupLR", {"warmup_num_steps": 2.5}, "positive integer, it is 2.5"),
        ("WarmupLR", {"warmup_type": "cubic"}, "use log or linear"),
        ("WarmupDecayLR", {}, "total_num_steps"),
        ("WarmupLR", {"warmup_max_lr": [0.1, 0.2]}, "2 values for 1 parameter group"),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0, "cycle_first_step_size": 0}, "must be above 0"),
    ],
)
def test_bad_input(type_: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(type_, params, optimizer_of([0.1]))


def test_what_is_no_optimizer_is_named() -> None:
    with pytest.raises((InputError, AttributeError), match="param_groups"):
        WarmupLR(torch.nn.Linear(1, 1))

"""Products in fp8 against the same in float64, and a model trained with them beside one in bf16. A CPU has them, slow ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import zenspeed
from zenspeed import resolve
from zenspeed.config import load
from zenspeed.display import Display
from zenspeed.errors import InputError
from zenspeed.models.build import build_model
from zenspeed.models.layers import use_float8
from zenspeed.ops.float8 import float8_linear
from zenspeed.recipe import Recipe
from zenspeed.run import open_run


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [32, 37, 1])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_against_float64(tokens: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, weight, bias, grad = (torch.randn(s, generator=generator) for s in ((2, tokens, 48), (64, 48), (64,), (2, tokens, 64)))
    x, bias = x * scale, bias * scale
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.linear(*exact)
    wanted.backward(grad.double())
    ours = [t.clone().requires_grad_() for t in (x.bfloat16(), weight, bias)]
    found = float8_linear(*ours)
    found.backward(grad.to(found.dtype))
    assert (found.dtype, found.shape) == (torch.bfloat16, (2, tokens, 64))
    # e4m3 rounds to within 1/16, e5m2 to within 1/8; of random roundings a third of that is left in the norm.
    assert relative(found, wanted.detach()) < 0.045
    for mine, theirs, most in zip(ours, exact, (0.07, 0.07, 0.01), strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == mine.dtype
        assert relative(mine.grad, theirs.grad) < most
    assert relative(found, wanted.detach()) > 0.005  # it is fp8


def test_nothing_is_nothing() -> None:
    weight = torch.zeros(16, 16, requires_grad=True)
    y = float8_linear(torch.zeros(16, 16), weight)
    y.sum().backward()
    assert torch.equal(y.float(), torch.zeros(16, 16)) and weight.grad is not None and not weight.grad.any()


def test_blocks_alone_and_only_while_training() -> None:
    config = load(Recipe, None, ["model.layers=2", "model.width=32", "model.heads=2", "model.context=16"]).model
    model = build_model(config, 64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert use_float8(model) == 2 * 4
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        evaluated = model(tokens)
    trained = model(tokens)
    plain = build_model(config, 64)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(evaluated, plain(tokens)) and not torch.equal(trained, evaluated)
    assert use_float8(build_model(config.model_copy(update={"width": 24, "inner": 40}), 64)) == 0


def run(tmp_path: Path, precision: str) -> list[float]:
    sets = [
        "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "model.ngrams=[]", "tokenizer.vocab_size=300",
        "train.batch_size=8", "train.steps=50", f"train.precision={precision}", f"run.folder={tmp_path / precision}",
        "data.source=python-docs", f"data.cache={tmp_path / 'cache'}", "evaluate.every=0", "sample.prompts=[]",
        "log.tensorboard=false",
    ]  # fmt: skip
    zenspeed.train(load(Recipe, None, sets), display=Display(enabled=False))
    lines = (tmp_path / precision / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


def test_trains_as_bf16_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "has_float8", lambda device: True)
    ours, theirs = run(tmp_path, "fp8"), run(tmp_path, "bf16")
    assert ours != theirs
    assert ours[-1] < ours[0] - 0.5
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.05
    assert open_run(tmp_path / "fp8").recipe.train.precision == "fp8"


def test_a_machine_without_such_products_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"train.precision fp8: this cpu has no fast products in fp8.*set train.precision=bf16"
    ):
        run(tmp_path, "fp8")


def test_workers_of_a_parameter_server_refuse_it() -> None:
    with pytest.raises(InputError, match="parameter server compute in bf16 or fp32, not in fp8"):
        load(Recipe, None, ["train.precision=fp8", "parallel.mode=parameter_server"])

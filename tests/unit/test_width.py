"""Rates carry over from a narrow model to a wide one (µP, Yang et al. 2203.03466)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zenspeed.config import InputError, load
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.recipe import OptimConfig, Recipe

CONTEXT, VOCABULARY = 16, 32


def model_of(width: int, base: int | None, init: str = "gpt2") -> Transformer:
    config = ModelConfig(
        layers=1, width=width, base_width=base, heads=2, context=CONTEXT, preset="gpt2", init=init, tie_embeddings=False
    )  # type: ignore[arg-type]
    model = Transformer(config, VOCABULARY)
    model.init_weights(1)
    return model


def batches(count: int) -> list[Tensor]:
    """Each token decides the next but for some noise."""
    generator = torch.Generator().manual_seed(0)
    follow = torch.randperm(VOCABULARY, generator=generator)
    out = []
    for _ in range(count):
        rows = [torch.randint(VOCABULARY, (8,), generator=generator)]
        for _ in range(CONTEXT):
            luck = torch.randint(VOCABULARY, (8,), generator=generator)
            rows.append(torch.where(torch.rand(8, generator=generator) < 0.2, luck, follow[rows[-1]]))
        out.append(torch.stack(rows, 1))
    return out


def trained(width: int, base: int | None, rate: float, name: str, steps: int) -> tuple[float, float]:
    """The mean loss of the last third, and how far the logits moved, per logit."""
    model = model_of(width, base)
    plans = plan_optimizers(model, OptimConfig(name=name, lr=rate, adam_lr=rate))  # type: ignore[arg-type]
    optimizers = []
    for plan in plans:
        groups = [
            {"params": [p.parameter for p in group.parameters], **options}
            for group, options in zip(plan.groups, plan.options, strict=True)
        ]
        optimizers.append(plan.build(groups))
    data, losses = batches(steps), []
    with torch.no_grad():
        before = model(data[0][:, :-1])
    for rows in data:
        loss = model(rows[:, :-1], targets=rows[:, 1:]) / (8 * CONTEXT)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        moved = float((model(data[0][:, :-1]) - before).square().mean().sqrt())
    last = losses[-max(1, steps // 3) :]
    return sum(last) / len(last), moved


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_logits_move_alike_at_every_width(name: str) -> None:
    """The coordinate check (section D.1): with base_width a few steps move the logits as far at eight times the width."""
    rate = {"adamw": 3e-3, "muon": 3e-3}[name]
    narrow = trained(32, None, rate, name, 4)[1]
    assert trained(256, 32, rate, name, 4)[1] == pytest.approx(narrow, rel=0.6)
    assert trained(256, None, rate, name, 4)[1] > 2.5 * narrow


def test_the_best_rate_stays_within_one_step_of_the_grid() -> None:
    """Adam, 32 and 256 wide, rates a factor of 4 apart; without base_width the best moves (benchmarks/width.py: 64, 512)."""
    rates = [1e-3 * 4**i for i in range(5)]

    def best(width: int, base: int | None) -> int:
        losses = [trained(width, base, rate, "adamw", 24)[0] for rate in rates]
        return min(range(len(rates)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)

    narrow = best(32, None)
    assert narrow > 0
    assert abs(best(256, 32) - narrow) <= 1
    assert best(256, None) < narrow


def test_what_is_scaled() -> None:
    narrow, wide = model_of(32, None), model_of(128, 32)
    assert wide.blocks[0].attention.scale == pytest.approx(1 / math.sqrt(16) * 16 / 64)  # type: ignore[union-attr]
    assert float(wide.embedding.weight.detach().std()) == pytest.approx(float(narrow.embedding.weight.detach().std()), rel=0.1)
    of = lambda model: float(model.blocks[0].feed_forward.up.weight.detach().std())  # noqa: E731
    assert of(wide) == pytest.approx(of(narrow) / 2, rel=0.1)
    hidden = torch.randn(3, 128)
    assert torch.allclose(wide.logits(hidden), hidden @ wide.head_weight.T / 4, atol=1e-6)
    (plan,) = plan_optimizers(wide, OptimConfig(name="adamw", lr=0.01, weight_decay=0.1))
    assert [o["lr"] for o in plan.options] == [0.0025, 0.01, 0.01]
    assert plan.options[0]["lr"] * plan.options[0]["weight_decay"] == pytest.approx(0.001)
    (sgd,) = plan_optimizers(wide, OptimConfig(name="sgd", lr=0.01))
    assert [o["lr"] for o in sgd.options] == [0.01, 0.04, 0.04]


def test_at_the_base_width_nothing_changes() -> None:
    tokens = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model_of(32, 32)(tokens), model_of(32, None)(tokens))


def test_where_it_cannot_be() -> None:
    with pytest.raises(InputError, match="base_width: is for a decoder with init zero_out, gpt2 or normal"):
        load(Recipe, None, ["model.preset=bert", "model.base_width=64"])
    with pytest.raises(InputError, match=r"model\.base_width: is for language_model and chat, not for classification"):
        load(Recipe, None, ["task.kind=classification", "model.base_width=64"])

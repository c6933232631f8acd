"""Optimizers agree with torch's own; schedules have the values their formulas give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import Muon, lr_factor, orthogonalize, plan_optimizers
from zenspeed.recipe import OptimConfig


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
@pytest.mark.parametrize(("nesterov", "weight_decay"), [(True, 0.1), (False, 0.0)])
def test_muon_agrees_with_torch(shape: tuple[int, int], nesterov: bool, weight_decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(2, *shape)
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": weight_decay}
    a, b = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        # Both iterate in bf16; the batched product sums in another order. A step is 0.02 × singular values of about 1.
        assert (p - q).abs().max() < 0.02 * 5 * 0.02
        assert torch.allclose(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"], rtol=1e-5, atol=1e-6)


def test_orthogonalize_gives_singular_values_near_one() -> None:
    x = orthogonalize(torch.randn(3, 40, 16), dtype=torch.float32)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize(("name", "theirs"), [("adamw", "AdamW"), ("sgd", "SGD")])
def test_plan_updates_as_torch_does(name: str, theirs: str) -> None:
    """The engine's slices are updated as torch updates whole parameters: tested through one process."""
    torch.manual_seed(0)
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    twin = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    twin.load_state_dict(model.state_dict())
    (plan,) = plan_optimizers(model, config)
    optimizer = plan.build(
        [{"params": [p.parameter for p in g.parameters], **o} for g, o in zip(plan.groups, plan.options, strict=True)]
    )
    more = {"betas": (0.8, 0.9), "eps": 1e-6} if name == "adamw" else {"momentum": config.momentum}
    matrices, vectors = ([p for p in twin.parameters() if (p.ndim == 2) is two] for two in (True, False))
    reference = getattr(torch.optim, theirs)(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=0.1, **more
    )
    for _ in range(4):
        for module, step in ((model, optimizer), (twin, reference)):
            step.zero_grad()
            torch.manual_seed(7)
            module(torch.randn(16, 4)).square().mean().backward()
            step.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_muon_takes_the_matrices_inside_blocks_only() -> None:
    model = Transformer(ModelConfig(layers=1, width=16, heads=2, context=8), 32)
    muon, adamw = plan_optimizers(model, OptimConfig(name="muon"))
    names = {p.name for g in muon.groups for p in g.parameters}
    assert names == {f"blocks.0.{n}.weight" for n in ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")}
    rest = {p.name for g in adamw.groups for p in g.parameters}
    assert names | rest == {n for n, _ in model.named_parameters()} and not names & rest


def test_schedules() -> None:
    def factor(step: int, **more: object) -> float:
        config = OptimConfig(**{"warmup": 10, **more})  # type: ignore[arg-type]
        return lr_factor(config, step / 100, step, 100)

    assert [factor(s) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == 0
    assert factor(55, schedule="cosine", final_lr=0.1) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert [factor(s, schedule="wsd", decay=0.4) for s in (50, 59, 80, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert factor(99, schedule="constant") == 1
    assert factor(0, warmup=0.1) == pytest.approx(0.1) and factor(9, warmup=0.1) == pytest.approx(1)
    shares = [lr_factor(OptimConfig(warmup=0.1), p / 50, 0, None) for p in range(51)]
    assert shares[0] > 0 and max(shares) == pytest.approx(1, abs=0.03) and shares[-1] == 0


@pytest.mark.parametrize("head", ["language", "masked", "label"])
def test_hashed_tables_have_an_optimizer_of_their_own_under_every_head(head: Head) -> None:
    """A body under a head is named `body.…`; a decoder's language model has its body itself."""
    config = ModelConfig(
        architecture="encoder" if head == "masked" else "decoder", layers=1, width=16, ngrams=(2,), ngram_rows=8
    )
    model = build_model(config, 20, head, labels=2)
    plans = plan_optimizers(model, OptimConfig())
    names = [[p.name.removeprefix("body.") for group in plan.groups for p in group.parameters] for plan in plans]
    assert names[-1] == ["ngrams.weight"] and not any("ngrams.weight" in of_plan for of_plan in names[:-1])

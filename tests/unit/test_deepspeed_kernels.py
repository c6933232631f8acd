"""Kernels under a user's module: the values of torch's own within bf16, used where they help and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import zenspeed
from zenspeed.compat.kernels import FastKernels

FUSED = "_scaled_dot_product_flash_attention_for_cpu"


class Names(TorchDispatchMode):
    """Notes which operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def tensors(heads: int = 2, tokens: int = 12, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, tokens, 8), (3, heads, tokens, 8), (3, heads, tokens, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def gradients(inputs: list[Tensor], **options: Any) -> list[Tensor]:
    out = F.scaled_dot_product_attention(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]


def padding(rows: int = 1) -> Tensor:
    mask = torch.ones(3, 1, rows, 12, dtype=torch.bool)
    mask[1, :, :, 7:] = False
    return mask


def added() -> Tensor:
    """Of the size of the other scores: they are rounded to bf16, by up to 0.002 × their size."""
    return torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) / 2


FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({}, 2), "causal": ({"is_causal": True}, 2), "scale": ({"scale": 0.3}, 2),
    "padding": ({"attn_mask": padding()}, 2), "added": ({"attn_mask": added()}, 2),
    "lowest": ({"attn_mask": torch.zeros(3, 1, 12, 12).masked_fill(~padding(12), torch.finfo(torch.float32).min)}, 2),
    "grouped": ({"enable_gqa": True, "is_causal": True}, 1),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_torchs_within_rounding(form: str) -> None:
    options, heads = FORMS[form]
    mask = options.get("attn_mask")
    if isinstance(mask, Tensor) and mask.dtype == torch.float32:
        options = options | {"attn_mask": mask.bfloat16()}
    exact_options = {k: v.double() if isinstance(v, Tensor) and v.dtype != torch.bool else v for k, v in options.items()}
    exact = gradients([t.detach().double().requires_grad_() for t in tensors(heads)], **exact_options)
    with FastKernels(), Names() as names:
        fast = gradients(tensors(heads), **options)
    assert FUSED not in names.seen and "_softmax" in names.seen
    for got, wanted in zip(fast, exact, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < 0.01  # eps of bf16 is 0.0039


def test_dropped_weights_are_none_or_larger() -> None:
    q, k, _ = tensors()
    unit = torch.eye(12, dtype=torch.bfloat16).expand(3, 2, 12, 12)  # as values: what comes out are the weights
    torch.manual_seed(0)
    with FastKernels(), Names() as names:
        whole, dropped = (F.scaled_dot_product_attention(q, k, unit, padding(), p).float() for p in (0.0, 0.25))
    assert "_scaled_dot_product_attention_math" not in names.seen and "_softmax" in names.seen
    kept = dropped != 0
    assert torch.allclose(dropped[kept], whole[kept] / 0.75, rtol=0.05)  # scores are rounded to bf16
    assert float(kept[whole > 0].float().mean()) == pytest.approx(0.75, abs=0.05)


def test_attention_under_autocast_is_in_its_type() -> None:
    with torch.autocast("cpu", torch.bfloat16), FastKernels(), Names() as names:
        out = F.scaled_dot_product_attention(*tensors(dtype=torch.float32))
    assert out.dtype == torch.bfloat16 and FUSED not in names.seen


def test_other_forms_are_left_to_torch() -> None:
    q, k, v = tensors()
    nothing_seen = padding(12)
    nothing_seen[0, 0, 3] = False
    learned = torch.zeros(12, 12, dtype=torch.bfloat16, requires_grad=True)
    forms: list[tuple[list[Tensor], dict[str, Any]]] = [
        ([q, k, v], {"attn_mask": nothing_seen}), ([q, k, v], {"attn_mask": learned}),
        ([q[:, :, :5], k, v], {"is_causal": True}), ([t.float() for t in (q, k, v)], {}), ([t[0] for t in (q, k, v)], {}),
        (tensors(tokens=513), {"is_causal": True}),
    ]  # fmt: skip
    for inputs, options in forms:
        alone = F.scaled_dot_product_attention(*inputs, **options)
        with FastKernels():
            inside = F.scaled_dot_product_attention(*inputs, **options)
        assert torch.equal(alone, inside), options
    with FastKernels():
        per_sample = torch.func.vmap(lambda *t: F.scaled_dot_product_attention(*t))(*(t[None] for t in (q, k, v)))
    assert per_sample.shape == (1, *q.shape)


class Attends(nn.Module):
    def __init__(self, recompute: str) -> None:
        super().__init__()
        self.inner, self.outer, self.recompute = nn.Linear(8, 24), nn.Linear(8, 8), recompute

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.gelu(self.outer(y.transpose(1, 2).flatten(2)), approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        again = self.recompute == "reentrant"
        out: Tensor = checkpoint(self.mix, x, use_reentrant=again) if self.recompute else self.mix(x)
        return out.float().square().mean()


def run(recompute: str = "", **config: Any) -> tuple[list[float], set[str]]:
    torch.manual_seed(0)
    settings = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 1.0}}, **config}
    engine = zenspeed.initialize(model=Attends(recompute), config=settings)[0]
    losses = []
    x = torch.randn(2, 12, 8).to(engine.module.inner.weight.dtype).requires_grad_()
    with Names() as names:
        for _ in range(3):
            loss = engine(x)
            engine.backward(loss)
            engine.step()
            losses.append(float(loss.detach()))
    engine.eval()
    with torch.no_grad(), Names() as quiet:
        engine(x)
    assert FUSED in quiet.seen
    return losses, names.seen


def test_the_engine_uses_them_in_bf16_only_and_can_be_told_not_to() -> None:
    bf16 = {"bf16": {"enabled": True}}
    fast, names = run(**bf16)
    assert FUSED not in names and "gelu" not in names
    own, names = run(**bf16, fast_kernels=False)
    assert FUSED in names and "gelu" in names
    assert fast == pytest.approx(own, rel=0.02)
    assert FUSED in run()[1]
    assert FUSED not in run(torch_autocast={"enabled": True, "dtype": "bf16"})[1]


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_recomputed_activations_are_torchs_both_times(how: str) -> None:
    losses, names = run(recompute=how, bf16={"enabled": True})
    assert FUSED in names
    assert losses == pytest.approx(run(bf16={"enabled": True}, fast_kernels=False)[0], rel=1e-6)

"""Normalization over the last dimension, the sums in fp32.

torch runs RMSNorm on the CPU as a chain of small operations, 4 times as long as its one LayerNorm kernel. Here forward is three
passes over the tensor and backward borrows LayerNorm's kernel (see `_RMSNorm`). Under torch.compile and on a GPU the plain
formula is used: there it becomes one kernel by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rmsnorm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) · weight (Zhang & Sennrich 1910.07467, eq. 4); the type of `x` is kept."""
    if x.device.type == "cpu" and weight is not None and x.dtype == weight.dtype and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, epsilon)
    return F.rms_norm(x, (x.shape[-1],), None if weight is None else weight.to(x.dtype), epsilon)


def layernorm(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """(x − mean) / sqrt(variance + epsilon) · weight + bias (Ba et al. 1607.06450); the type of `x` is kept."""
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x²) + epsilon) over the last dimension, kept as size 1, in fp32 or the wider type of `x`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """LayerNorm's backward, given mean 0 and rstd r, is r (gw − mean(gw) − x̂ mean(gw·x̂)); ours lacks the term − mean(gw)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        r = inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, r)
        return (x * r.to(x.dtype)).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x.contiguous(), weight.shape, torch.zeros_like(r), r, weight, None, (True, True, False)
        )
        mean = (grad @ weight).div_(x.shape[-1]).unsqueeze(-1)
        return grad_x.add_(mean * r), grad_weight, None

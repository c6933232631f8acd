"""Linear layers whose products run in fp8, for accelerators that have such products (Micikevicius et al. 2209.05433).

Weights and inputs become e4m3, which is the finer, gradients e5m2, which reaches further. Each tensor has one scale, by its
largest element as it is now; sums and results are wider, weights stay fp32 outside of the product.

Letters: N tokens, K inputs, F outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Sizes that the products take; tokens are filled up with zeros, which add nothing."""


def fits(outputs: int, inputs: int) -> bool:
    return outputs % MULTIPLE == 0 and inputs % MULTIPLE == 0


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias in bf16: x (…, K), weight (F, K), bias (F,) or None -> (…, F). Sizes as `fits` says."""
    flat = x.flatten(0, -2)
    missing = -len(flat) % MULTIPLE
    product = _Float8Linear.apply(F.pad(flat, (0, 0, 0, missing)) if missing else flat, weight)
    y: Tensor = product[: len(flat)].unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias.to(y.dtype)


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = _quantize(x, FORWARD)
        w8, w_scale = _quantize(weight, FORWARD)
        ctx.save_for_backward(x8, x_scale, weight, w_scale)  # the weight, which is there anyway, and not its copy in fp8
        ctx.dtype = x.dtype
        return _product(x8, w8.t(), x_scale, w_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight, w_scale = ctx.saved_tensors
        g8, g_scale = _quantize(grad, BACKWARD)
        w8 = _divide(weight, w_scale, FORWARD)
        grad_x = _product(g8, _columns(w8), g_scale, w_scale)
        grad_weight = _product(g8.t().contiguous(), _columns(x8), g_scale, x_scale)
        return grad_x.to(ctx.dtype), grad_weight.to(weight.dtype)


def _quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` / scale in fp8, and the fp32 scale, a scalar, by which the largest element is the largest of `dtype`."""
    scale = x.detach().abs().amax().float().clamp_(min=1e-12).div_(torch.finfo(dtype).max)
    return _divide(x, scale, dtype), scale


def _divide(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return (x.float() / scale).clamp_(-largest, largest).to(dtype).contiguous()


def _columns(x: Tensor) -> Tensor:
    """The same matrix laid out by columns, as the products want their second operand."""
    return x.t().contiguous().t()


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16)

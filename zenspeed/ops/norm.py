"""Normalization over the last dimension. The sums run in fp32 inside torch's kernels, whatever the type of `x`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rmsnorm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) · weight (Zhang & Sennrich 1910.07467, eq. 4); the type of `x` is kept."""
    return F.rms_norm(x, (x.shape[-1],), None if weight is None else weight.to(x.dtype), epsilon)


def layernorm(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """(x − mean) / sqrt(variance + epsilon) · weight + bias (Ba et al. 1607.06450); the type of `x` is kept."""
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)

"""Dropout whose random numbers cost little (Srivastava et al. 2014).

On a CPU drawing the mask is an eighth of a step of fine-tuning: torch draws one double of a Mersenne twister for each element.
Here one draw of 64 bits (SFC64, seeded from torch's generator) serves four elements, with 15 bits each, and the mask is laid
over the bits of the numbers. A share is exact to 1/32,768. On other devices, and under torch.compile, torch's own is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**15
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def dropout(x: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """`x` with a `share` of its elements 0 and the others divided by 1 − share; draws from `generator`, or torch's own."""
    if x.device.type != "cpu" or x.dtype not in _BITS or torch.compiler.is_compiling():
        if generator is None:
            return F.dropout(x, share)
        kept = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - share, generator=generator)
        return x * kept.div_(1 - share)
    kept = _kept(x.numel(), share, generator).view(x.shape)
    return _Masked.apply(x, kept if x.dtype != torch.float32 else kept.to(torch.int32), 1 / (1 - share))


def _kept(count: int, share: float, generator: torch.Generator | None) -> Tensor:
    """int16 (count,): all bits where an element is kept, none where it is dropped."""
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    draws = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-count // 4), dtype=np.uint64)
    bits = draws.view(np.int16)[:count]
    # In place, a pass each: draws from 0 to 32,767, then the sign of (dropped levels − 1 − draw) over all bits.
    bits &= np.int16(_LEVELS - 1)
    np.subtract(np.int16(round(share * _LEVELS) - 1), bits, out=bits)
    bits >>= 15
    return torch.from_numpy(bits)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _masked(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kept,) = ctx.saved_tensors
        return _masked(gradients[0], kept, ctx.scale), None, None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    return (x.contiguous().view(_BITS[x.dtype]) & kept).view(x.dtype).mul_(scale)

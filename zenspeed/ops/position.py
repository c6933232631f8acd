"""Positions of tokens, rotary position embedding (Su et al. 2104.09864), and the way from a fused projection to heads.

Also sinusoidal positions (Vaswani et al. 1706.03762), and the biases of scores by distance of T5 (Raffel et al. 1910.10683)
and ALiBi (Press et al. 2108.12409).

Letters: B sequences, T tokens, H query heads, G key and value heads, D head width. The pairs that rotate are (i, i + D/2), as
in Llama's weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zenspeed.ops.norm import inverse_rms

Rotary = tuple[Tensor, Tensor]
"""Cosines and signed sines, of `rotary_tables`."""


def positions_in_documents(documents: Tensor) -> Tensor:
    """Place of each token in its own document, from 0: (B, T) document numbers -> (B, T) int64.

    A document is a run of equal numbers; the same number further on counts as a new start.
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.zeros_like(documents, dtype=torch.int64)
    starts[:, 1:] = index[1:] * (documents[:, 1:] != documents[:, :-1])
    return index - starts.cummax(dim=1).values


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """positions (…) -> (…, C) fp32: sin(p / 10000^(2i/C)) at place 2i, the cosine at 2i + 1 (1706.03762, section 3.5)."""
    inverse = 10_000.0 ** (torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / -width)
    angles = positions[..., None].float() * inverse
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def relative_buckets(distances: Tensor, num: int, furthest: int, causal: bool) -> Tensor:
    """Bucket 0 … `num` − 1 of each distance key − query: one each for near ones, then wider with the logarithm.

    If causal, keys that follow are all in bucket 0; else they have the upper half of the buckets. T5, section 2.1.
    """
    offset = torch.zeros_like(distances)
    if causal:
        distance = (-distances).clamp(min=0)
    else:
        num //= 2
        offset, distance = (distances > 0) * num, distances.abs()
    exact = num // 2
    wide = torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact) * (num - exact)
    return offset + torch.where(distance < exact, distance, (exact + wide.long()).clamp(max=num - 1))


def alibi_bias(heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """(1, H, T, S) fp32: −slope · |query − key|, slopes 2^(−8/H), 2^(−16/H) … for a power of two of heads.

    Other numbers take the slopes of the next lower power of two, then every second one of the next higher.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-4 * (2 * i + 1) / lower) for i in range(heads - lower)]
    distance = (queries[:, None] - keys).abs().float()
    return -torch.tensor(slopes, device=queries.device)[None, :, None, None] * distance


def rotary_tables(positions: Tensor, head_width: int, base: float, dtype: torch.dtype) -> Rotary:
    """Cosines and signed sines of the angles position / base^(2i/D), in `dtype`, ready to broadcast over (B, H, T, D).

    `positions` (T,) gives tables (T, D); (B, T) gives (B, 1, T, D). The sine's first half is negated, so that
    `apply_rotary` is x · cos + swap(x) · sin. Angles are fp32: in bf16 a position above 256 is no longer exact.
    """
    inverse = base ** (torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / -head_width)
    angles = positions[..., None].float() * inverse  # (…, T, D/2)
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    cos, sin = (t.unsqueeze(1) if positions.ndim == 2 else t for t in tables)
    return cos.to(dtype), sin.to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs of `x` (B, H, T, D) by the angles of `rotary_tables`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def split_heads(
    qkv: Tensor, heads: int, kv_heads: int, rotary: Rotary | None = None, norm_epsilon: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, T, D), k and v (B, G, T, D) out of qkv (B, T, (H + 2G)·D), each row of a head contiguous.

    With `norm_epsilon`, q and k are divided by their root mean square over D (Dehghani et al. 2302.05442, without weights);
    with `rotary` they are rotated.
    """
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        q, k, v = _SplitHeads.apply(qkv, heads, kv_heads, rotary, norm_epsilon)
        return q, k, v
    q, k, v = _to_heads(qkv, heads + 2 * kv_heads).split((heads, kv_heads, kv_heads), dim=1)
    if norm_epsilon is not None:
        q, k = (F.rms_norm(x, (x.shape[-1],), None, norm_epsilon) for x in (q, k))
    if rotary is not None:
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
    return q, k, v


def _to_heads(qkv: Tensor, num: int) -> Tensor:
    return qkv.unflatten(-1, (num, -1)).transpose(1, 2)  # (B, H + 2G, T, D)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`apply_rotary` into `out`, without the copy that swaps the halves."""
    (x1, x2), (out1, out2), (cos1, cos2), (sin1, sin2) = (t.chunk(2, dim=-1) for t in (x, out, cos, sin))
    torch.mul(x1, cos1, out=out1).addcmul_(x2, sin1)
    torch.mul(x2, cos2, out=out2).addcmul_(x1, sin2)


class _SplitHeads(torch.autograd.Function):
    """q, k and v are each one piece of memory, so that products need no copy; autograd adds no slices, zeros and sums.

    Rotation keeps lengths and angles. So the norm may come after it, and its backward needs only what is kept anyway:
    with y = x r the gradient of x is r (g − y mean(g·y)).
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, kv_heads: int, rotary: Rotary | None, norm_epsilon: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _to_heads(qkv, heads + 2 * kv_heads).split((heads, kv_heads, kv_heads), dim=1)
        out, kept = [], []
        for x in (q, k):
            if rotary is None:
                x = x.contiguous()
            else:
                x, source = torch.empty_like(x, memory_format=torch.contiguous_format), x
                _rotate(source, *rotary, out=x)
            if norm_epsilon is not None:
                r = inverse_rms(x, norm_epsilon).to(x.dtype)
                kept += [x.mul_(r), r]
            out.append(x)
        ctx.save_for_backward(*kept, *(rotary or ()))
        ctx.sizes, ctx.has_norm, ctx.has_rotary = (heads, kv_heads), norm_epsilon is not None, rotary is not None
        return out[0], out[1], v.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        heads, kv_heads = ctx.sizes
        saved = list(ctx.saved_tensors)
        B, _, T, D = grad_q.shape
        out = torch.empty((B, T, heads + 2 * kv_heads, D), dtype=grad_q.dtype)
        *parts, part_v = out.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
        for part, grad in zip(parts, (grad_q, grad_k), strict=True):
            if ctx.has_norm:
                y, r = saved.pop(0), saved.pop(0)
                mean = (grad * y).sum(-1, keepdim=True, dtype=torch.promote_types(y.dtype, torch.float32)) / D
                grad = torch.addcmul(grad, y, mean.to(y.dtype), value=-1).mul_(r)
            if ctx.has_rotary:
                cos, sin = saved[-2:]
                _rotate(grad, cos, -sin, out=part)
            else:
                part.copy_(grad)
        part_v.copy_(grad_v)
        return out.flatten(2), None, None, None, None

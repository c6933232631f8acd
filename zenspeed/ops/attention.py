"""Attention: two ways to compute it, and the choice between them.

    plain   softmax(q kᵀ / √D + bias) v as two batched matrix products. Holds T × S scores a head.
    sdpa    torch's fused kernel. Never holds the scores.

On CPU the plain way is faster up to `PLAIN_TOKENS` keys: the products run in oneDNN at the speed of any other, where the
fused kernel reaches half of it. Above, memory and softmax win for the fused one. On a GPU the fused one is always better.

Letters: B sequences, T new tokens, S tokens that can be seen (S = T without a cache), H query heads, G key and value heads
(H is a multiple of G), D head width. Heads come before tokens, (B, H, T, D), so that a product reads whole rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PLAIN_TOKENS = 1024
"""As measured with 4,096 tokens of 6 heads of 64, bf16, forward and backward, one thread, time of fused over plain: 1.8 at
T = 256, 2.0 at 512, 1.4 at 1,024, 1.1 at 2,048; inside documents 2.6, 2.1, 1.8, 1.9. Not higher, for what the plain way keeps
for the backward pass grows with T: 2 H T bytes a token and layer.
"""


class Mask(NamedTuple):
    """What a token may attend to, built once a forward and shared by all layers."""

    bias: Tensor | None
    """Added to the scores: (T, S) or (B, 1, T, S), 0 or −inf; None: everything, or what `causal` says."""
    causal: bool
    """The kernel applies the causal mask by itself (T = S, and no bias)."""
    plain: bool
    """Matrix products instead of the fused kernel."""


def make_mask(
    num_new: int,
    num_seen: int,
    dtype: torch.dtype,
    device: torch.device,
    documents: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    bias: Tensor | None = None,
    places: Places | None = None,
) -> Mask:
    """The mask of the last `num_new` of `num_seen` tokens, inside documents if (B, T) `documents` are given.

    Padding is a document like any other: it sees only padding, and no row is without anything to see.

    Args:
        window: a token sees so many tokens back, itself included; if not causal, as many forward.
        bias: (1, H, T, S), added to the scores.
        places: of the tokens, where they are not simply 0 … S − 1; only a window needs them.
    """
    plain = device.type == "cpu" and (num_seen <= PLAIN_TOKENS or num_new == 1)
    if documents is None and window is None:
        if bias is not None and (num_new == 1 or not causal):
            return Mask(bias.to(dtype), causal=False, plain=plain)
        if num_new == 1 or not causal:
            return Mask(None, causal=False, plain=plain)
        if num_new == num_seen and not plain and bias is None:
            return Mask(None, causal=True, plain=False)
    allowed = torch.ones(num_new, num_seen, dtype=torch.bool, device=device)  # (T, S)
    if causal:
        allowed = allowed.tril(num_seen - num_new)
    if window is not None:
        queries, keys = places or places_of(num_new, num_seen, device)
        distance = queries[:, None] - keys
        allowed = allowed & (distance < window) & (distance > -window)
    if documents is not None:
        allowed = (allowed & (documents[:, :, None] == documents[:, None, :])).unsqueeze(1)  # (B, 1, T, T)
    masked = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
    return Mask(masked if bias is None else bias.to(dtype) + masked, causal=False, plain=plain)


Places = tuple[Tensor, Tensor]
"""Where new tokens (T,) and seen tokens (S,) stand in their row."""


def places_of(num_new: int, num_seen: int, device: torch.device) -> Places:
    """Of the last `num_new` of `num_seen` tokens."""
    seen = torch.arange(num_seen, device=device)
    return seen[num_seen - num_new :], seen


def cross_mask(documents: Tensor, source_documents: Tensor, dtype: torch.dtype) -> tuple[Mask, Tensor | None]:
    """What tokens of `documents` (B, T) see of `source_documents` (B, S): the source of the same number, −1 is padding.

    The second is (B, 1, T, 1), true where a token sees anything, or None if all do; the others' results are to be taken as 0.
    """
    num_seen = source_documents.shape[1]
    allowed = (documents[:, :, None] == source_documents[:, None, :]) & (documents >= 0)[:, :, None]  # (B, T, S)
    sees = allowed.any(-1, keepdim=True)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=documents.device).masked_fill_(~allowed & sees, -math.inf)
    plain = documents.device.type == "cpu" and num_seen <= PLAIN_TOKENS
    return Mask(bias.unsqueeze(1), causal=False, plain=plain), None if sees.all() else sees.unsqueeze(1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """q (B, H, T, D), k and v (B, G, S, D) -> (B, H, T, D). Scores are scaled by `scale`, by default 1/√D."""
    if mask.plain:
        return _plain(q, k, v, mask.bias, q.shape[-1] ** -0.5 if scale is None else scale)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask.bias, is_causal=mask.causal, scale=scale, enable_gqa=grouped)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Differentiated by torch where something compiles or records it, else by `_Plain`, which works in place."""
    if torch.compiler.is_compiling():
        weights = _scores(q * scale, k)
        return _apply((weights if bias is None else weights + bias).softmax(dim=-1), v)
    return _Plain.apply(q, k, v, bias, scale)


# The H/G query heads that share a key head are more rows of one product: no key or value is repeated.


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q (B, H, T, D) times kᵀ, k (B, G, S, D): (B, H, T, S). Also ∂weights, from ∂out and v."""
    (B, H, T, D), G = q.shape, k.shape[1]
    return torch.matmul(q.reshape(B, G, -1, D), k.transpose(-1, -2)).view(B, H, T, -1)


def _apply(weights: Tensor, v: Tensor) -> Tensor:
    """weights (B, H, T, S) times v (B, G, S, D): (B, H, T, D). Also ∂q, from ∂scores and k."""
    (B, H, T, S), G = weights.shape, v.shape[1]
    return torch.matmul(weights.view(B, G, -1, S), v).view(B, H, T, -1)


def _collect(weights: Tensor, x: Tensor, G: int) -> Tensor:
    """weightsᵀ (B, H, S, T) times x (B, H, T, D), summed over the heads of a group: (B, G, S, D). ∂v, and ∂k from ∂scores."""
    (B, _, _, S), D = weights.shape, x.shape[-1]
    return torch.matmul(weights.view(B, G, -1, S).transpose(-1, -2), x.reshape(B, G, -1, D))


class _Plain(torch.autograd.Function):
    """Keeps one tensor of the size of the scores, the weights; scale and bias are one pass over them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        scores = _scores(q, k)
        scores = scores.mul_(scale) if bias is None else torch.add(bias, scores, alpha=scale, out=scores)
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return _apply(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        grad, scale, G = grad.contiguous(), ctx.scale, k.shape[1]
        grad_v = _collect(weights, grad, G)
        grad_scores = torch._softmax_backward_data(_scores(grad, v), weights, -1, weights.dtype)
        grad_q, grad_k = _apply(grad_scores, k).mul_(scale), _collect(grad_scores, q, G).mul_(scale)
        grad_bias = grad_scores.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[3] else None
        return grad_q, grad_k, grad_v, grad_bias, None

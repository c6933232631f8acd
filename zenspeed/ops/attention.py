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
) -> Mask:
    """The mask of the last `num_new` of `num_seen` tokens, inside documents if (B, T) `documents` are given.

    Padding is a document like any other: it sees only padding, and no row is without anything to see.
    """
    plain = device.type == "cpu" and (num_seen <= PLAIN_TOKENS or num_new == 1)
    if documents is None:
        if num_new == 1 or not causal:
            return Mask(None, causal=False, plain=plain)
        if num_new == num_seen and not plain:
            return Mask(None, causal=True, plain=False)
    allowed = torch.ones(num_new, num_seen, dtype=torch.bool, device=device)  # (T, S)
    if causal:
        allowed = allowed.tril(num_seen - num_new)
    if documents is not None:
        allowed = (allowed & (documents[:, :, None] == documents[:, None, :])).unsqueeze(1)  # (B, 1, T, T)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
    return Mask(bias, causal=False, plain=plain)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """q (B, H, T, D), k and v (B, G, S, D) -> (B, H, T, D). Scores are scaled by 1/√D."""
    if mask.plain:
        return _plain(q, k, v, mask.bias)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask.bias, is_causal=mask.causal, enable_gqa=grouped)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Differentiated by torch where something compiles or records it, else by `_Plain`, which works in place."""
    if torch.compiler.is_compiling():
        weights = _scores(q * q.shape[-1] ** -0.5, k)
        return _apply((weights if bias is None else weights + bias).softmax(dim=-1), v)
    return _Plain.apply(q, k, v, bias)


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
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        scale = q.shape[-1] ** -0.5
        scores = _scores(q, k)
        scores = scores.mul_(scale) if bias is None else torch.add(bias, scores, alpha=scale, out=scores)
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return _apply(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        grad, scale, G = grad.contiguous(), q.shape[-1] ** -0.5, k.shape[1]
        grad_v = _collect(weights, grad, G)
        grad_scores = torch._softmax_backward_data(_scores(grad, v), weights, -1, weights.dtype)
        grad_q = _apply(grad_scores, k).mul_(scale)
        return grad_q, _collect(grad_scores, q, G).mul_(scale), grad_v, None

"""Attention: two ways to compute it, and the choice between them.

    plain   softmax(q kᵀ / √D + bias) v as two batched matrix products. Holds T × S scores a head.
    sdpa    torch's fused kernel. Never holds the scores.

Of one sequence that holds many documents, the scores lie in blocks along the diagonal, and only these are computed: documents
of about one length are gathered as rows, padded, and go through one of the two ways together. Everything but attention works
on a sequence without padding.

On CPU the plain way is faster up to `PLAIN_TOKENS` keys: the products run in oneDNN at the speed of any other, where the
fused kernel reaches half of it. Above, memory and softmax win for the fused one. On a GPU the fused one is always better.

Letters: B sequences, T new tokens, S tokens that can be seen (S = T without a cache), H query heads, G key and value heads
(H is a multiple of G), D head width. Heads come before tokens, (B, H, T, D), so that a product reads whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PLAIN_TOKENS = 4096
"""As measured with 2,048 tokens and more of 6 heads of 64, bf16, causal, forward and backward, one thread, time of the fused
kernel over the plain way in stripes: 3.1 at T = 256, 3.5 at 512, 2.5 at 1,024, 2.5 at 2,048, 2.5 at 4,096. Not higher, for a
mask is T × T.
"""
KEPT_TOKENS = 1024
"""Up to so many keys the weights are kept for the backward pass, 2 H T bytes a token and layer; above they are made again."""
STRIPE_TOKENS = 128
"""Rows of a causal square that are computed together, each stripe against the keys up to its end."""

_WIDTHS = tuple(32 << k for k in range(16))  # of rows: few, since a block costs some forty calls a layer
_FEW_SCORES = 128**2  # of a head: fewer cost less than the calls of a block
_STEP = 16  # a row that nothing is learned from is no wider than it must be, in steps that products like


class Mask(NamedTuple):
    """What a token may attend to, built once a forward and shared by all layers."""

    bias: Tensor | None
    """Added to the scores: (T, S) or (B, 1, T, S), 0 or −inf; None: everything, or what `causal` says."""
    causal: bool
    """The kernel applies the causal mask by itself (T = S, and no bias)."""
    plain: bool
    """Matrix products instead of the fused kernel."""
    blocks: Blocks | None = None
    """Of one sequence of many documents; then nothing else counts."""
    triangle: bool = False
    """T = S, and no token sees a later one: the plain way leaves out most of what is above the diagonal."""


class Blocks(NamedTuple):
    """Documents of a sequence of T tokens as padded rows; those of one width, a block."""

    tokens: list[Tensor]
    """For each block (rows, width): the token at each place, that of the row's beginning where there is padding."""
    padding: list[Tensor]
    """For each block the places of padding, flattened."""
    places: Tensor
    """(T,) the place of each token in all blocks, flattened one behind the other."""
    masks: list[Mask]
    """For each block, of (H, rows, width, D): heads come before rows."""


Places = tuple[Tensor, Tensor]
"""Where new tokens (T,) and seen tokens (S,) stand in their row."""


def make_mask(
    num_new: int,
    num_seen: int,
    dtype: torch.dtype,
    device: torch.device,
    documents: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    bias: Callable[[Places], Tensor] | None = None,
    places: Places | None = None,
    blocks: bool = True,
) -> Mask:
    """The mask of the last `num_new` of `num_seen` tokens, inside documents if (B, T) `documents` are given.

    Padding is a document like any other: it sees only padding, and no row is without anything to see.

    Args:
        window: a token sees so many tokens back, itself included; if not causal, as many forward.
        bias: gives (1, H, T, S) for the places of T and S tokens, a function of their distances; added to the scores.
        places: of the tokens, where they are not simply 0 … S − 1.
        blocks: one sequence of many documents may be computed in blocks, whose shapes differ from call to call.
    """
    if blocks and documents is not None and len(documents) == 1 and (found := _find_blocks(documents[0])):
        rows, inside = found
        for numbers in inside:
            width = numbers.shape[1]
            mask = make_mask(width, width, dtype, device, numbers, causal, window, bias)
            assert mask.bias is not None
            rows.masks.append(mask._replace(bias=mask.bias.transpose(0, 1)))
        return Mask(None, causal=False, plain=False, blocks=rows)
    plain = device.type == "cpu" and (num_seen <= PLAIN_TOKENS or num_new == 1)
    if documents is None and window is None and (bias is None or num_new == 1 or not causal):
        if bias is not None:
            return Mask(bias(places or places_of(num_new, num_seen, device)).to(dtype), causal=False, plain=plain)
        if num_new == 1 or not causal:
            return Mask(None, causal=False, plain=plain)
        if num_new == num_seen and not plain:
            return Mask(None, causal=True, plain=False)
    allowed = torch.ones(num_new, num_seen, dtype=torch.bool, device=device)  # (T, S)
    if causal:
        allowed = allowed.tril(num_seen - num_new)
    queries, keys = places = places or places_of(num_new, num_seen, device)
    if window is not None:
        distance = queries[:, None] - keys
        allowed = allowed & (distance < window) & (distance > -window)
    if documents is not None:
        allowed = (allowed & (documents[:, :, None] == documents[:, None, :])).unsqueeze(1)  # (B, 1, T, T)
    masked = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
    triangle = causal and num_new == num_seen
    masked = masked if bias is None else bias(places).to(dtype) + masked
    return Mask(masked, causal=False, plain=plain, triangle=triangle)


def _find_blocks(documents: Tensor) -> tuple[Blocks, list[Tensor]] | None:
    """Blocks of a sequence of document numbers (T,), masks still to be made, and the numbers inside each, (rows, width).

    None where one document fills half of the sequence, and little more than its own square would be computed.
    """
    if torch.compiler.is_compiling():
        return None
    numbers = documents.numpy(force=True)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    lengths = np.diff(starts, append=len(numbers))
    widths = np.array(_WIDTHS)[np.searchsorted(_WIDTHS, lengths)]
    if 2 * lengths.max() >= len(numbers) and len(numbers) ** 2 - (widths**2).sum() < _FEW_SCORES:
        return None
    blocks, inside = Blocks([], [], torch.empty(len(numbers), dtype=torch.int64), []), []
    size = 0
    for width in np.unique(widths):
        first, length = starts[widths == width, None], lengths[widths == width, None]
        if not torch.is_grad_enabled():  # training would meet too many shapes, each with memory of its own
            width = -(-length.max() // _STEP) * _STEP
        columns = np.arange(width)
        real = columns < length  # (rows, width)
        tokens = torch.from_numpy(np.where(real, first + columns, first))
        there = torch.from_numpy(real)
        blocks.places[tokens[there]] = there.flatten().nonzero().squeeze(1) + size
        size += tokens.numel()
        blocks.tokens.append(tokens.to(documents.device))
        blocks.padding.append((~there).flatten().nonzero().squeeze(1).to(documents.device))
        inside.append(documents[blocks.tokens[-1]].masked_fill(~there.to(documents.device), -2))
    return blocks._replace(places=blocks.places.to(documents.device)), inside


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
    if mask.blocks is not None:
        return _blockwise(q, k, v, mask.blocks, scale)
    if mask.plain:
        return _plain(q, k, v, mask.bias, q.shape[-1] ** -0.5 if scale is None else scale, mask.triangle)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask.bias, is_causal=mask.causal, scale=scale, enable_gqa=grouped)


def _blockwise(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float | None) -> Tensor:
    """Of one sequence, q (1, H, T, D): `attention` of each block by itself."""
    shared = q.shape[1] // k.shape[1]
    parts = [_Gather.apply(x.squeeze(0), blocks) for x in (q, k, v)]
    out = []
    for mask, *qkv in zip(blocks.masks, *parts, strict=True):
        q, k, v = (x if x is qkv[0] or shared == 1 else x.repeat_interleave(shared, dim=0) for x in qkv)
        out.append(attention(q, k, v, mask, scale))  # (H, rows, width, D)
    return _Return.apply(blocks, *out).unsqueeze(0)


class _Gather(torch.autograd.Function):
    """Tokens (H, T, D) to (H, rows, width, D) of each block. Padding is made into nothing, so it has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks) -> tuple[Tensor, ...]:
        ctx.places = blocks.places
        return tuple(x.index_select(1, t.flatten()).unflatten(1, t.shape) for t in blocks.tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.cat([g.flatten(1, 2) for g in grads], dim=1).index_select(1, ctx.places), None


class _Return(torch.autograd.Function):
    """The way back, of (H, rows, width, D) of each block to tokens (H, T, D)."""

    @staticmethod
    def forward(ctx: Any, blocks: Blocks, *out: Tensor) -> Tensor:
        ctx.tokens, ctx.padding = blocks.tokens, blocks.padding
        return torch.cat([y.flatten(1, 2) for y in out], dim=1).index_select(1, blocks.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.tokens, ctx.padding, strict=True)
        rows = (grad.index_select(1, t.flatten()).index_fill_(1, p, 0).unflatten(1, t.shape) for t, p in pairs)
        return None, *rows


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, triangle: bool = False) -> Tensor:
    """Differentiated by torch where something compiles or records it, else by `_Plain`, which works in place."""
    stripes = _stripes(q.shape[2], k.shape[2], triangle)
    if not torch.compiler.is_compiling():
        return _Plain.apply(q, k, v, bias, scale, stripes)
    parts = []
    for start, stop, seen in stripes:
        scores, place = _scores(q[:, :, start:stop] * scale, k[:, :, :seen]), _part(bias, start, stop, seen)
        scores = scores if place is None else scores + place
        parts.append(_apply(scores.softmax(dim=-1), v[:, :, :seen]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _stripes(num_new: int, num_seen: int, triangle: bool) -> list[tuple[int, int, int]]:
    """(start, stop, seen): tokens start … stop see at most the first `seen`. All at once, but for a triangle or many keys."""
    if num_new < 2 * STRIPE_TOKENS or not (triangle or num_seen > KEPT_TOKENS):
        return [(0, num_new, num_seen)]
    rows = STRIPE_TOKENS if num_new <= 1024 else 2 * STRIPE_TOKENS
    ends = [*range(rows, num_new, rows), num_new]
    return [(start, stop, stop if triangle else num_seen) for start, stop in pairwise([0, *ends])]


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


def _part(bias: Tensor | None, start: int, stop: int, seen: int) -> Tensor | None:
    return None if bias is None else bias[..., start:stop, :seen]


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(q kᵀ · scale + bias), (B, H, T, S)"""
    scores = _scores(q, k)
    scores = scores.mul_(scale) if bias is None else torch.add(bias, scores, alpha=scale, out=scores)
    return scores.softmax(dim=-1)


class _Plain(torch.autograd.Function):
    """Keeps the weights, of the size of the scores, or makes them again; scale and bias are one pass over them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, stripes: list[tuple[int, int, int]]
    ) -> Tensor:
        ctx.scale, ctx.stripes, keep = scale, stripes, k.shape[2] <= KEPT_TOKENS
        kept, parts = [], []
        for start, stop, seen in stripes:
            weights = _weights(q[:, :, start:stop], k[:, :, :seen], _part(bias, start, stop, seen), scale)
            parts.append(_apply(weights, v[:, :, :seen]))
            kept += [weights] if keep else []
        ctx.save_for_backward(q, k, v, bias, *kept)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, *kept = ctx.saved_tensors
        grad, G, whole = grad.contiguous(), k.shape[1], len(ctx.stripes) == 1
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        grad_q = grad_k = grad_v = torch.empty(0)
        # From the last stripe on, which sees every key: the others are added to what it gives.
        for start, stop, seen in reversed(ctx.stripes):
            g, x = grad[:, :, start:stop], q[:, :, start:stop]
            weights = kept.pop() if kept else _weights(x, k[:, :, :seen], _part(bias, start, stop, seen), ctx.scale)
            grad_scores = torch._softmax_backward_data(_scores(g, v[:, :, :seen]), weights, -1, weights.dtype)
            part = _apply(grad_scores, k[:, :, :seen])
            if stop == q.shape[2]:
                grad_v, grad_k = _collect(weights, g, G), _collect(grad_scores, x, G)
                grad_q = part if whole else torch.empty_like(q)
            else:
                grad_v[:, :, :seen] += _collect(weights, g, G)
                grad_k[:, :, :seen] += _collect(grad_scores, x, G)
            if not whole:
                grad_q[:, :, start:stop] = part
            if grad_bias is not None:
                place = grad_bias[..., start:stop, :seen]
                place += grad_scores.sum_to_size(place.shape)
        return grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale), grad_v, grad_bias, None, None

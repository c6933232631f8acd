"""Cross entropy of a linear head, in chunks of tokens: tokens × vocabulary is never held.

`linear_cross_entropy` makes the gradients in the forward pass, while a chunk's probabilities are at hand, and multiplies them
by the incoming scalar in the backward pass. What it costs: the gradients are made even if nobody asks for them (use
`token_losses` to evaluate) and backward runs once only.

Letters: N tokens, C width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Target of a token that has no loss."""
CHUNK_TOKENS, CHUNK_LOGITS = 1024, 2**25
"""The most of a chunk. As measured at vocabularies of 4,096 and 50,257, 512 to 2,048 tokens are equally fast, 256 take 1.05."""
BLOCK_ROWS = 2048
"""Of the gradient of the weight, made at a time: small enough to be in the cache when it is added up."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Sum over tokens of −log softmax(hidden weightᵀ + bias)[target], in nats: an fp32 scalar.

    Args:
        hidden: (N, C). weight: (V, C). bias: (V,) or None. Products run in autocast's type, else in the type of `hidden`.
        targets: (N,) int64; `IGNORE` where there is no loss. Already shifted: targets[i] is what hidden[i] predicts.
        softcap: logits become cap · tanh(logits / cap).
    """
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets, bias, softcap).sum()
    kept = targets != IGNORE
    if not kept.all():  # a row without loss costs nothing
        hidden, targets = hidden[kept], targets[kept]
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, bias, softcap, product_dtype(hidden))
    return total


@torch.no_grad()
def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Loss of each token, (N,) fp32 in nats, 0 where the target is `IGNORE`; no gradient. Arguments as above."""
    dtype = product_dtype(hidden)
    weight, losses = weight.to(dtype), []
    for h, t in _chunks(hidden.to(dtype), targets, len(weight)):
        logits = _logits(h, weight, bias, softcap).float()
        losses.append(F.cross_entropy(logits, t, ignore_index=IGNORE, reduction="none"))
    return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        accumulate = torch.promote_types(dtype, torch.float32)
        h_all, w = hidden.to(dtype), weight.to(dtype)
        grad_hidden = torch.empty_like(h_all)
        grad_weight = torch.zeros(weight.shape, dtype=accumulate, device=weight.device)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=accumulate)
        total = torch.zeros((), dtype=accumulate, device=hidden.device)
        done = 0
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _chunks(h_all, targets, len(w))
            # One place for all: what the allocator gets back of such a size it seldom can give again.
            place = w.new_empty(max((len(t) for _, t in chunks), default=0), len(w))
            for h, t in chunks:
                grad, losses = _logits_gradient(h, w, t, bias, softcap, place[: len(t)])  # (n, V), (n,)
                total += losses.sum()
                torch.mm(grad, w, out=grad_hidden[done : done + len(t)])
                for rows, part in zip(grad_weight.split(BLOCK_ROWS), grad.split(BLOCK_ROWS, dim=1), strict=True):
                    rows += part.t() @ h
                if grad_bias is not None:
                    grad_bias += grad.sum(0, dtype=accumulate)
                done += len(t)
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        ctx.dtypes = hidden.dtype, weight.dtype
        return total.float() if dtype != torch.float64 else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: backward runs once, its buffers are scaled in place; run forward again")
        (hidden, weight, bias), ctx.gradients = ctx.gradients, None
        hidden = hidden.mul_(grad).to(ctx.dtypes[0])
        weight = weight.mul_(grad).to(ctx.dtypes[1])
        return hidden, weight, None, None if bias is None else bias.mul_(grad).to(ctx.dtypes[1]), None, None


def _logits_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, place: Tensor
) -> tuple[Tensor, Tensor]:
    """d loss / d logits (n, V) in the type of the products, and the losses (n,) in fp32 or that type if wider.

    Made in `place`: the logits become the probabilities, and these the gradient. The target's gradient is p − 1. In bf16
    that would be 0 for every p above 0.998, so it is minus the sum of the other probabilities, which is as exact as they are,
    however confident the model; and so is the loss.
    """
    logits = _logits(hidden, weight, bias, softcap, place)
    wide, index = torch.promote_types(logits.dtype, torch.float32), targets[:, None]
    slope = None if softcap is None else 1 - (logits / softcap).square()
    probabilities = torch.softmax(logits, dim=1, out=logits)
    p = probabilities.gather(1, index)  # (n, 1)
    # By flat places: `scatter_` copies the whole matrix before it writes one number a row.
    places = targets + torch.arange(0, logits.numel(), logits.shape[1], device=targets.device)
    others = probabilities.put_(places, torch.zeros_like(p)).sum(dim=1, keepdim=True)
    probabilities.put_(places, -others)
    losses = torch.where(others < 0.5, -torch.log1p(-others.to(wide)), -p.to(wide).log()).squeeze(1)
    lost = p.squeeze(1) < 1e-30  # about to underflow: a loss above 69 nats
    if lost.any():
        again = _logits(hidden[lost], weight, bias, softcap).to(wide)
        losses[lost] = torch.logsumexp(again, dim=1) - again.gather(1, index[lost]).squeeze(1)
    return probabilities if slope is None else probabilities.mul_(slope), losses


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, place: Tensor | None = None) -> Tensor:
    wide = weight.t()
    logits = torch.mm(hidden, wide, out=place) if bias is None else torch.addmm(bias.to(wide), hidden, wide, out=place)
    return logits if softcap is None else torch.tanh(logits.div_(softcap), out=place).mul_(softcap)


def _chunks(hidden: Tensor, targets: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    fitting = 256 * max(1, CHUNK_LOGITS // (256 * vocabulary))
    count = min(CHUNK_TOKENS, fitting)
    return list(zip(hidden.split(count), targets.split(count), strict=True)) if len(targets) else []


def product_dtype(x: Tensor) -> torch.dtype:
    """The type matrix products of `x` run in: autocast's where it is on, else its own."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # shapes without data have no autocast
        return x.dtype
    return torch.get_autocast_dtype(kind)

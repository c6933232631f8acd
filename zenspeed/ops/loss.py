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
CHUNK_TOKENS = 1024
"""As measured at vocabularies of 4,096 and 50,257: 256 to 2,048 are within 4 %, and 1,024 is the best of both."""


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
    for h, t in _chunks(hidden.to(dtype), targets):
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
            for h, t in _chunks(h_all, targets):
                logits = _logits(h, w, bias, softcap)  # (n, V)
                grad, losses = _softmax_gradient(logits, t)
                total += losses.sum()
                if softcap is not None:
                    grad = grad * (1 - (logits / softcap).square())
                torch.mm(grad, w, out=grad_hidden[done : done + len(t)])
                grad_weight += grad.t() @ h
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


def _softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """d loss / d logits (n, V) in the type of the logits, and the losses (n,) in fp32 or the type of the logits if wider.

    The target's gradient is p − 1. In bf16 that would be 0 for every p above 0.998, so it is minus the sum of the other
    probabilities, which is as exact as they are, however confident the model; and so is the loss.
    """
    wide, index = torch.promote_types(logits.dtype, torch.float32), targets[:, None]
    probabilities = logits.softmax(dim=1)
    p = probabilities.gather(1, index)  # (n, 1)
    # By flat places: `scatter_` copies the whole matrix before it writes one number a row.
    places = targets + torch.arange(0, logits.numel(), logits.shape[1], device=targets.device)
    others = probabilities.put_(places, torch.zeros_like(p)).sum(dim=1, keepdim=True)
    probabilities.put_(places, -others)
    losses = torch.where(others < 0.5, -torch.log1p(-others.to(wide)), -p.to(wide).log()).squeeze(1)
    lost = p.squeeze(1) < 1e-30  # about to underflow: a loss above 69 nats
    if lost.any():
        losses[lost] = torch.logsumexp(logits[lost].to(wide), dim=1) - logits[lost].gather(1, index[lost]).squeeze(1).to(wide)
    return probabilities, losses


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _chunks(hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)) if len(targets) else []


def product_dtype(x: Tensor) -> torch.dtype:
    """The type matrix products of `x` run in: autocast's where it is on, else its own."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # shapes without data have no autocast
        return x.dtype
    return torch.get_autocast_dtype(kind)

"""Losses that compare texts of a batch by their vectors, which are of length 1.

Letters: N pairs, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_batch_loss(first: Tensor, second: Tensor, temperature: float, no_negative: Tensor | None = None) -> Tensor:
    """(N,) nats: how well each text finds its own among all texts of the other side, the mean of both directions.

    InfoNCE (van den Oord et al. 1807.03748) with in-batch negatives (Henderson et al. 1705.00652).

    Args:
        first, second: (N, C) fp32; `first[i]` and `second[i]` belong together.
        no_negative: (N, N) bool, pairs (i, j) that do not count as negatives, such as equal texts; the diagonal is ignored.
    """
    scores = first @ second.T / temperature  # (N, N)
    if no_negative is not None:
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(no_negative & ~own, -torch.inf)
    targets = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, targets, reduction="none") + F.cross_entropy(scores.T, targets, reduction="none")) / 2


def order_loss(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """log(1 + Σ exp((cos_i − cos_j) / temperature)) over pairs with score_i < score_j: pairs in the order of their scores.

    CoSENT (Su 2022, kexue.fm/archives/8847); only the order of scores counts, not their scale.

    Args:
        cosines, scores: (N,).
    """
    differences = (cosines[:, None] - cosines[None, :]) / temperature
    wrong_way = differences[scores[:, None] < scores[None, :]]
    return torch.logsumexp(torch.cat([wrong_way.new_zeros(1), wrong_way]), 0)

"""One vector for each document of a packed batch.

Letters: B sequences, T tokens, C width, N documents.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_documents(tokens: Tensor) -> Tensor:
    """(B, T) document numbers where each row of `tokens` is one document."""
    return torch.arange(tokens.shape[0], device=tokens.device)[:, None].expand(tokens.shape)


def pool_documents(hidden: Tensor, documents: Tensor, num: int, how: str) -> Tensor:
    """(N, C) of hidden (B, T, C) and documents (B, T), 0 … `num` − 1 with −1 for padding.

    `how`: `first` or `last` token of a document, or the `mean` of all of them. A number without tokens gives zeros.
    """
    flat, x = documents.flatten(), hidden.flatten(0, 1)
    places = (flat >= 0).nonzero().squeeze(1)
    owners = flat[places]
    if how == "mean":
        counts = torch.bincount(owners, minlength=num).clamp_(min=1).unsqueeze(1)
        sums = torch.zeros(num, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return (sums.index_add(0, owners, x[places].to(sums.dtype)) / counts).to(x.dtype)
    missing = len(flat) if how == "first" else -1
    chosen = torch.full((num,), missing, dtype=torch.int64, device=x.device)
    chosen.scatter_reduce_(0, owners, places, "amin" if how == "first" else "amax")
    there = chosen != missing
    return x[chosen.where(there, 0)] * there.unsqueeze(1).to(x.dtype)


def log_softmax_in_documents(scores: Tensor, documents: Tensor, num: int) -> Tensor:
    """(B·T, K) fp32 log probabilities of scores (B, T, K), each of the K columns a softmax over a document's own tokens."""
    flat, x = documents.flatten() + 1, scores.flatten(0, 1).float()  # padding is document 0
    index = flat.unsqueeze(1).expand(x.shape)
    highest = torch.full((num + 1, x.shape[1]), -torch.inf, device=x.device).scatter_reduce(0, index, x.detach(), "amax")
    shifted = x - highest[flat]
    sums = torch.zeros(num + 1, x.shape[1], device=x.device).index_add(0, flat, shifted.exp())
    return shifted - sums.log()[flat]

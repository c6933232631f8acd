"""The likeliest span of each document of a packed batch.

Letters: B sequences, T tokens, N documents.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_spans(log_probabilities: Tensor, documents: Tensor, allowed: Tensor, num: int, longest: int) -> tuple[Tensor, Tensor]:
    """Of spans start ≤ end < start + `longest` inside a document, the one with the highest sum of start and end.

    Args:
        log_probabilities: (B·T, 2) of start and end, as `log_softmax_in_documents` gives them.
        documents: (B·T,) 0 … `num` − 1, −1 for padding; a document's tokens stand together.
        allowed: (B·T,) bool, tokens that may be in a span.

    Returns:
        (N,) the sum, −inf for a document without an allowed token; (N, 2) start and end, both included, in 0 … B·T − 1.
    """
    start, end = log_probabilities.masked_fill(~allowed.unsqueeze(1), -torch.inf).unbind(1)
    total, device = len(documents), documents.device
    best, width = torch.full_like(start, -torch.inf), torch.zeros_like(documents)
    for more in range(min(longest, total)):
        n = total - more
        score = (start[:n] + end[more:]).masked_fill(documents[:n] != documents[more:], -torch.inf)
        better = score > best[:n]
        best[:n], width[:n] = torch.where(better, score, best[:n]), width[:n].masked_fill(better, more)
    index = documents + 1  # padding is document 0
    highest = torch.full((num + 1,), -torch.inf, device=device).scatter_reduce_(0, index, best, "amax")
    places = torch.arange(total, device=device)
    first = torch.full((num + 1,), total - 1, device=device)
    first.scatter_reduce_(0, index, places.masked_fill(best != highest[index], total - 1), "amin")
    begin = first[1:]
    return highest[1:], torch.stack([begin, begin + width[begin]], 1)

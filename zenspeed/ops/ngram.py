"""Which row of a table the last n tokens are looked up in: hashed n-grams (as in Huang et al. 2025, arXiv 2501.16975)."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIER = 6364136223846793005  # Knuth's 64-bit linear congruential generator; int64 products wrap around
_FINAL = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def ngram_rows(tokens: Tensor, order: int, num_rows: int) -> Tensor:
    """Row (B, T) int64 in 0 … num_rows - 1 of the `order` tokens that end at each place; the same tokens, the same row.

    The first order - 1 places of a row of `tokens` see tokens from before it as 0: the caller leaves them out.
    """
    key = torch.zeros_like(tokens)
    for back in range(order):
        shifted = torch.nn.functional.pad(tokens, (back, 0))[:, : tokens.shape[1]]
        key = key * _MULTIPLIER + shifted + 1
    key = (key ^ (key >> 32)) * _FINAL
    return (key ^ (key >> 29)).remainder(num_rows)

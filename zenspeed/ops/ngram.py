"""Which row of a table the last n tokens are looked up in: hashed n-grams (as in Huang et al. 2025, arXiv 2501.16975)."""

from __future__ import annotations

import numpy as np
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


def last_ngram_rows(windows: np.ndarray, orders: tuple[int, ...], num_rows: int) -> list[np.ndarray]:
    """For each order the row (M,) of the n-gram at the end of each of `windows` (M, longest order) int64: as `ngram_rows`.

    For decoding, where a token has a row of its own and a dozen calls of torch would take longer than the model.
    """
    key, rows = np.zeros(len(windows), np.int64), {}
    with np.errstate(over="ignore"):
        for back in range(max(orders)):
            key = key * np.int64(_MULTIPLIER) + windows[:, -1 - back] + 1
            mixed = (key ^ (key >> 32)) * np.int64(_FINAL)
            rows[back + 1] = np.mod(mixed ^ (mixed >> 29), num_rows)
    return [rows[order] for order in orders]

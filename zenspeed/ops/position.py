"""Positions of tokens, and rotary position embedding (Su et al. 2104.09864).

Letters: B sequences, T tokens, H heads, D head width. The pairs that rotate are (i, i + D/2), as in Llama's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions_in_documents(documents: Tensor) -> Tensor:
    """Place of each token in its own document, from 0: (B, T) document numbers -> (B, T) int64.

    A document is a run of equal numbers; the same number further on counts as a new start.
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.zeros_like(documents, dtype=torch.int64)
    starts[:, 1:] = index[1:] * (documents[:, 1:] != documents[:, :-1])
    return index - starts.cummax(dim=1).values


def rotary_tables(positions: Tensor, head_width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the angles position / base^(2i/D), in `dtype`, ready to broadcast over (B, H, T, D).

    `positions` (T,) gives tables (T, D); (B, T) gives (B, 1, T, D). The sine's first half is negated, so that
    `apply_rotary` is x · cos + swap(x) · sin. Angles are fp32: in bf16 a position above 256 is no longer exact.
    """
    inverse = base ** (torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / -head_width)
    angles = positions[..., None].float() * inverse  # (…, T, D/2)
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    cos, sin = (t.unsqueeze(1) if positions.ndim == 2 else t for t in tables)
    return cos.to(dtype), sin.to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs of `x` (B, H, T, D) by the angles of `rotary_tables`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin

"""What a model sees at once, made from windows of the token stream.

B sequences of T tokens; a window is T + 1 tokens, and the target of each token is the one after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""Target where there is no loss."""


class Batch(NamedTuple):
    """One micro-batch."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model: "tokens" (B, T) int64; "documents" (B, T) int64 where attention must be kept inside."""
    targets: Tensor
    """(B, T) int64, the token that follows, or IGNORE."""


class EvalBatch(NamedTuple):
    """A batch of evaluation, whose losses can be summed for each document."""

    batch: Batch
    documents: Tensor
    """(B, T) int64, number in the split of the document that each target belongs to; -1 where the target is IGNORE."""


def batch_of_windows(windows: np.ndarray, end_of_text: int, attend_across_documents: bool) -> Batch:
    """The batch of (B, T + 1) consecutive tokens.

    "documents" counts the documents inside a sequence from its beginning, so equal numbers may attend to each other. It is left
    out when each sequence holds one document, or when attention may cross: the model then takes its fast path.
    """
    tokens = torch.from_numpy(windows.astype(np.int64))
    inputs = {"tokens": tokens[:, :-1].contiguous()}
    starts = inputs["tokens"] == end_of_text  # (B, T)
    if not attend_across_documents and bool(starts[:, 1:].any()):
        inputs["documents"] = starts.cumsum(dim=1)
    return Batch(inputs, tokens[:, 1:].contiguous())

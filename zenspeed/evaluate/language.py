"""How well a language model predicts a held-out split: loss, perplexity and bits per byte over all of it, with intervals."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from zenspeed.data.loader import evaluation_batches
from zenspeed.data.shards import TokenDataset
from zenspeed.evaluate.interval import Figure, ratio_interval


@torch.no_grad()
def document_losses(
    module: nn.Module,
    dataset: TokenDataset,
    context: int,
    batch_size: int,
    autocast: AbstractContextManager[Any],
    rank: int = 0,
    ranks: int = 1,
    attend_across_documents: bool = False,
    overlap: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss in nats and number of tokens of every document, (documents,) float64 each.

    Every token of the split is predicted exactly once, in windows of `context` that overlap by `overlap`; memory does not grow
    with the split.
    With several ranks each takes its share of the windows, and all get the sums.
    """
    device = next(module.parameters()).device
    sums = torch.zeros(2, dataset.num_documents, dtype=torch.float64)
    was_training = module.training
    module.eval()
    with autocast:
        for item in evaluation_batches(
            dataset, context, batch_size, rank, ranks, attend_across_documents=attend_across_documents, overlap=overlap
        ):
            inputs = {k: v.to(device) for k, v in item.batch.inputs.items()}
            losses = module(**inputs, targets=item.batch.targets.to(device), reduction="none")
            counted = item.documents >= 0
            where = item.documents[counted]
            sums[0].index_add_(0, where, losses.cpu()[counted].double())
            sums[1].index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
    module.train(was_training)
    if ranks > 1:
        dist.all_reduce(sums)
    return sums[0].numpy(), sums[1].numpy()


def language_figures(losses: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray) -> dict[str, Figure]:
    """Loss, perplexity and bits per byte from per-document sums; intervals by resampling documents.

    Args:
        losses: (documents,) nats. tokens: (documents,) predicted tokens, the end included. text_bytes: (documents,) UTF-8.
    """
    bytes_ = text_bytes.astype(np.float64)
    return {
        "loss": ratio_interval(losses, tokens, "mean negative log likelihood of a token, in nats"),
        "perplexity": ratio_interval(losses, tokens, "exp(loss)", np.exp),
        "bits_per_byte": ratio_interval(
            losses, bytes_, "negative log2 likelihood of the text divided by its UTF-8 bytes", lambda x: x / math.log(2)
        ),
    }

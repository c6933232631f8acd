"""What stands on a body: masked language model, label, span, embedding; and the language head of recurrent models.

A head gets the hidden states (B, T, C) and the batch, and returns its output, or the loss in nats when targets are given. The
`masked` head makes logits of those tokens only that have a target.

Letters: B sequences, T tokens, C width, V vocabulary, N documents, L labels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.layers import Dropout, Linear, Norm
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.activation import activate
from zenspeed.ops.loss import IGNORE, linear_cross_entropy, token_losses
from zenspeed.ops.pool import log_softmax_in_documents, pool_documents

Head = Literal["language", "masked", "label", "span", "embedding"]
Reduction = Literal["sum", "none"]


class Context(NamedTuple):
    """What a head knows beside the hidden states."""

    documents: Tensor
    """(B, T), 0 … N − 1 and −1 for padding."""
    num_documents: int
    embedding: Tensor
    """(V, C), the weight of a tied head."""


class LanguageHead(nn.Module):
    """Logits (B, T, V), or the loss of targets (B, T), already shifted."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.softcap = config.logit_softcap
        self.head = None if config.tie_embeddings else Linear(config.width, vocab_size, bias=False)

    def forward(self, hidden: Tensor, context: Context, targets: Tensor | None, reduction: Reduction) -> Tensor:
        if targets is None:
            return self.logits(hidden, context.embedding)
        weight = self.weight(context.embedding)
        return _token_loss(hidden, weight, None, targets, reduction, self.softcap)

    def weight(self, embedding: Tensor) -> Tensor:
        return embedding if self.head is None else self.head.weight

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        logits = F.linear(hidden, self.weight(embedding))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def flops(self, config: ModelConfig, vocab_size: int) -> float:
        """Forward products of one token."""
        return 2.0 * config.width * vocab_size


class MaskedHead(nn.Module):
    """BERT's: linear, activation, norm, then the embedding (or a weight of its own) with a bias. Logits (B, T, V) or loss."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.activation = "gelu" if config.gated else config.activation
        self.dense = Linear(config.width, config.width)
        self.norm = Norm(config, config.width)
        self.head = None if config.tie_embeddings else Linear(config.width, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.empty(vocab_size))

    def forward(self, hidden: Tensor, context: Context, targets: Tensor | None, reduction: Reduction) -> Tensor:
        weight = context.embedding if self.head is None else self.head.weight
        if targets is None:
            return F.linear(self._transform(hidden), weight, self.bias)
        kept = targets != IGNORE
        if reduction == "sum":
            return linear_cross_entropy(self._transform(hidden[kept]), weight, targets[kept], self.bias)
        losses = torch.zeros(targets.shape, device=hidden.device)
        losses[kept] = token_losses(self._transform(hidden[kept]), weight, targets[kept], self.bias)
        return losses

    def _transform(self, x: Tensor) -> Tensor:
        return self.norm(activate(self.dense(x), self.activation))

    def flops(self, config: ModelConfig, vocab_size: int) -> float:
        """Forward products of one token that has a target."""
        return 2.0 * config.width * (config.width + vocab_size)


class LabelHead(nn.Module):
    """Logits (N, L), or the loss of targets (N,).

    Targets that are whole numbers are labels: cross entropy, none where IGNORE. With one output and targets that are floats,
    it is a regression and the loss is the squared error.
    """

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        self.pool, self.dropout = config.pool, Dropout(config.dropout)
        self.pooler = Linear(config.width, config.width) if config.pooler else None
        self.score = Linear(config.width, labels, bias=config.architecture != "decoder")  # Hugging Face's decoders have none

    def forward(self, hidden: Tensor, context: Context, targets: Tensor | None, reduction: Reduction) -> Tensor:
        x = pool_documents(hidden, context.documents, context.num_documents, self.pool)
        if self.pooler is not None:
            x = self.pooler(x).tanh()
        x = self.dropout(x)
        logits = self.score(x)
        if targets is None:
            return logits
        if targets.is_floating_point():
            return F.mse_loss(logits.squeeze(1).float(), targets.float(), reduction=reduction)
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction=reduction)

    def flops(self, config: ModelConfig, vocab_size: int) -> float:
        """Nothing: a text has one such product, and not each of its tokens."""
        return 0.0


class SpanHead(nn.Module):
    """Logits (B, T, 2) of start and end, or the loss of targets (N, 2): places in the flattened B·T, IGNORE for no answer.

    The softmax is over the tokens of the own document. The loss of a document is that of its start plus that of its end.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.score = Linear(config.width, 2)

    def forward(self, hidden: Tensor, context: Context, targets: Tensor | None, reduction: Reduction) -> Tensor:
        logits = self.score(hidden)
        if targets is None:
            return logits
        return span_loss(logits, context.documents, context.num_documents, targets, reduction)

    def flops(self, config: ModelConfig, vocab_size: int) -> float:
        """Forward products of one token."""
        return 4.0 * config.width


def span_loss(logits: Tensor, documents: Tensor, num_documents: int, targets: Tensor, reduction: Reduction) -> Tensor:
    """Of logits (B, T, 2) and targets (N, 2), as `SpanHead` says."""
    log_probabilities = log_softmax_in_documents(logits, documents, num_documents)  # (B·T, 2)
    kept = targets != IGNORE
    losses = -log_probabilities.gather(0, targets.where(kept, 0)) * kept
    return losses.sum() if reduction == "sum" else losses.sum(1)


class EmbeddingHead(nn.Module):
    """Vectors (N, C) of length 1. There is no loss of a text by itself: it is the task that compares texts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pool = config.pool

    def forward(self, hidden: Tensor, context: Context, targets: Tensor | None, reduction: Reduction) -> Tensor:
        assert targets is None, "an embedding has no targets of its own"
        return F.normalize(pool_documents(hidden, context.documents, context.num_documents, self.pool).float(), dim=1)

    def flops(self, config: ModelConfig, vocab_size: int) -> float:
        return 0.0


AnyHead = LanguageHead | MaskedHead | LabelHead | SpanHead | EmbeddingHead


def build_head(config: ModelConfig, vocab_size: int, head: Head, labels: int) -> AnyHead:
    """The head of that name, its weights unset."""
    if head == "label":
        return LabelHead(config, labels)
    if head == "span":
        return SpanHead(config)
    if head == "embedding":
        return EmbeddingHead(config)
    return MaskedHead(config, vocab_size) if head == "masked" else LanguageHead(config, vocab_size)


def _token_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, reduction: Reduction, softcap: float | None
) -> Tensor:
    x, flat = hidden.flatten(0, 1), targets.flatten()
    if reduction == "sum":
        return linear_cross_entropy(x, weight, flat, bias, softcap)
    return token_losses(x, weight, flat, bias, softcap).view(targets.shape)

"""From a config and the head that a task needs to a model.

decoder + language            Transformer       embedding, blocks.0 …, norm, head
encoder_decoder + language    EncoderDecoder    embedding, encoder.…, decoder.…, head
all others                    Model             body.embedding, body.blocks.0 …, head.…: a body is the same under any head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.models.encoder_decoder import EncoderDecoder
from zenspeed.models.heads import Context, Head, LanguageHead, Reduction, build_head
from zenspeed.models.initial import draw_weights
from zenspeed.models.layers import KeyValueCache
from zenspeed.models.presets import ModelConfig
from zenspeed.models.recurrent import Recurrent, RecurrentCache
from zenspeed.models.transformer import Body, Transformer, balance_loss
from zenspeed.ops.pool import row_documents


def build_model(config: ModelConfig, vocab_size: int, head: Head = "language", labels: int = 0) -> nn.Module:
    """The model, its weights drawn from torch's global generator; call its `init_weights(seed)` for others.

    Args:
        labels: outputs of the head `label`; 1 with float targets is a regression.

    Raises:
        InputError: the architecture cannot do what is asked.
    """
    if config.architecture == "transformers":
        from zenspeed.models.auto import AutoTransformer  # which needs an optional package

        return AutoTransformer(config, vocab_size, head, labels)
    if head == "language" and config.architecture == "encoder":
        raise InputError("model.architecture: an encoder sees the token it would predict; take a decoder, or task masked_lm")
    if head == "masked" and config.architecture in ("decoder", "recurrent"):
        raise InputError(
            f"model.architecture: a {config.architecture} does not see what follows; masked_lm needs an encoder, such as bert"
        )
    if head != "language" and config.architecture == "encoder_decoder":
        raise InputError(f"model.architecture: encoder_decoder has no {head} head; take an encoder, such as bert")
    if head == "label" and labels < 1:
        raise InputError(f"labels {labels}: a label head needs at least one output")
    if head == "language" and config.architecture == "decoder":
        return Transformer(config, vocab_size)
    if config.architecture == "encoder_decoder":
        return EncoderDecoder(config, vocab_size)
    return Model(config, vocab_size, head, labels)


class Model(nn.Module):
    """A body under a head; arguments and results are those of the head, see heads.py."""

    def __init__(self, config: ModelConfig, vocab_size: int, head: Head, labels: int = 0) -> None:
        super().__init__()
        self.config, self.vocab_size, self.kind, self.labels = config, vocab_size, head, labels
        self.body = Recurrent(config, vocab_size) if config.architecture == "recurrent" else Body(config, vocab_size)
        self.head = build_head(config, vocab_size, head, labels)
        if not self.embedding.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        token_types: Tensor | None = None,
        num_documents: int | None = None,
        targets: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor:
        """The head's output, or the loss in nats (fp32) when `targets` are given.

        Args:
            tokens: (B, T) int64.
            documents: (B, T): number of each token's document, 0 … N − 1, unique over the batch, −1 for padding. Documents
                do not see each other. Default: every row is one.
            token_types: (B, T) int64; default: all 0.
            num_documents: N; needed with `documents` by the heads that have one output a document, else read off.
            targets: as the head says. reduction: `sum`, or `none`: a loss for each target.
        """
        wanted = self.config.experts and self.training and targets is not None and torch.is_grad_enabled()
        balance: list[Tensor] | None = [] if wanted else None
        hidden = self.body.hidden_states(tokens, documents, token_types=token_types, balance=balance)
        if documents is None:
            documents, num_documents = row_documents(tokens), len(tokens)
        elif num_documents is None:
            counted = self.kind in ("label", "span", "embedding")
            num_documents = int(documents.max()) + 1 if counted else 0
        out = self.head(hidden, Context(documents, num_documents, self.embedding.weight), targets, reduction)
        return out + balance_loss(balance, self.config, targets) if balance and targets is not None else out

    def hidden_states(
        self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | RecurrentCache | None = None
    ) -> Tensor:
        """What the head reads, (B, T, C)."""
        return self.body.hidden_states(tokens, documents, cache=cache)  # type: ignore[arg-type]

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states -> (…, V), of a language model."""
        assert isinstance(self.head, LanguageHead), f"a {self.kind} head has no logits of tokens"
        return self.head.logits(hidden, self.embedding.weight)

    def new_cache(self, batch: int, max_tokens: int) -> KeyValueCache | RecurrentCache:
        """An empty cache for `batch` sequences."""
        return self.body.new_cache(batch, max_tokens)

    @property
    def embedding(self) -> nn.Embedding:
        """Of tokens."""
        return self.body.embedding

    @property
    def blocks(self) -> nn.ModuleList:
        """What is compiled one by one."""
        return self.body.blocks

    def init_weights(self, seed: int | torch.Generator | None = None) -> None:
        """Sets all weights, as in `initial.draw_weights`."""
        draw_weights(self, self.config, seed)

    def num_parameters(self) -> int:
        """Weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int) -> float:
        """Operations of the matrix products of forward and backward for one token of a full sequence, as `Transformer`'s.

        The masked head is counted for every token; with targets at a share of them it is that share.
        """
        return 3 * (self.body.body_flops(context) + self.head.flops(self.config, self.vocab_size))

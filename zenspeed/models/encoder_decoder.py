"""From one text to another: an encoder reads the source, a decoder writes the target and looks at what was read.

    source (B, S) ─ embedding ─ encoder ─ memory (B, S, C)
                        │                    │ cross-attention, inside documents of the same number
    tokens (B, T) ── embedding ─ decoder ────┴─ head ─ logits (B, T, V), or the loss

Transformer (1706.03762) and T5 (1910.10683) are presets. To decode, `new_cache` reads the source once and keeps its keys and
values beside those of the tokens written so far; `select` of the cache reorders its rows, as a beam search does.

Letters: B sequences, S source tokens, T target tokens, C width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.heads import Head, Reduction
from zenspeed.models.initial import draw_weights
from zenspeed.models.layers import Embedding, KeyValueCache, Linear, Memory
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Body, balance_loss
from zenspeed.ops.loss import linear_cross_entropy, token_losses
from zenspeed.ops.pool import row_documents


class EncoderDecoder(nn.Module):
    """`config.layers` blocks that read and `config.decoder_layers` that write; weights drawn as those of `Transformer`."""

    kind: Head = "language"

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = Embedding(vocab_size, config.width)
        self.encoder = Body(config, vocab_size, part="encoder")
        self.decoder = Body(config, vocab_size, part="decoder")
        self.head = None if config.tie_embeddings else Linear(config.width, vocab_size, bias=False)
        if not self.embedding.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        source: Tensor | None = None,
        source_documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        targets: Tensor | None = None,
        reduction: Reduction = "sum",
    ) -> Tensor:
        """Logits (B, T, V), or the loss in nats (fp32) when `targets` are given.

        Args:
            tokens: (B, T) int64, what the decoder has written so far, behind a token that begins it.
            documents: (B, T) numbers, −1 for padding. Default: a row is one document.
            source: (B, S) int64; not with a cache, which has read it.
            source_documents: (B, S); a target sees the source of its number. Default: a row is one document.
            targets: (B, T) int64, already shifted; IGNORE (−100): no loss.
            reduction: `sum`: the sum of the losses, with gradient. `none`: each token's loss (B, T), without gradient.
        """
        balance: list[Tensor] | None = None
        if self.config.experts and self.training and targets is not None and torch.is_grad_enabled():
            balance = []
        memory = None
        if cache is None:
            assert source is not None, "a source, or a cache that has read one"
            memory = self.read(source, source_documents, balance)
        hidden = self.hidden_states(tokens, documents, cache=cache, memory=memory, balance=balance)
        if targets is None:
            return self.logits(hidden)
        x, flat, softcap = self._scaled(hidden).flatten(0, 1), targets.flatten(), self.config.logit_softcap
        if reduction == "none":
            return token_losses(x, self.head_weight, flat, softcap=softcap).view(targets.shape)
        loss = linear_cross_entropy(x, self.head_weight, flat, softcap=softcap)
        return loss + balance_loss(balance, self.config, targets) if balance else loss

    def read(self, source: Tensor, documents: Tensor | None = None, balance: list[Tensor] | None = None) -> Memory:
        """What the encoder makes of `source` (B, S)."""
        hidden = self.encoder.hidden_states(source, documents, embedding=self.embedding, balance=balance)
        return Memory(row_documents(source) if documents is None else documents, hidden, [])

    def hidden_states(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
        balance: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, T, C) of the decoder, after its last norm; the source is in `cache` or in `memory`."""
        return self.decoder.hidden_states(
            tokens, documents, cache=cache, memory=memory, embedding=self.embedding, balance=balance
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states -> (…, V)."""
        logits, softcap = F.linear(self._scaled(hidden), self.head_weight), self.config.logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.config.width**-0.5 if self.config.scale_logits else hidden

    @property
    def head_weight(self) -> Tensor:
        """(V, C); the embedding's own weight if tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def new_cache(self, source: Tensor, max_tokens: int, source_documents: Tensor | None = None) -> KeyValueCache:
        """A cache for up to `max_tokens` of one target a row, which has read `source` (B, S).

        `source_documents`: (B, S), −1 for padding; every row is one document.
        """
        memory = self.read(source, source_documents)
        cache = self.decoder.new_cache(len(source), max_tokens)
        keys = [block.cross.read(memory.hidden) for block in self.decoder.blocks]  # type: ignore[union-attr, operator]
        cache.memory = memory._replace(hidden=None, keys=keys)
        return cache

    @property
    def blocks(self) -> nn.ModuleList:
        """What is compiled one by one."""
        return nn.ModuleList([*self.encoder.blocks, *self.decoder.blocks])

    def init_weights(self, seed: int | torch.Generator | None = None) -> None:
        """Sets all weights, as in `initial.draw_weights`."""
        draw_weights(self, self.config, seed)

    def num_parameters(self) -> int:
        """Weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int, source: int | None = None) -> float:
        """Operations of the matrix products of forward and backward for one target token of `context`, as `Transformer`'s.

        `source`: tokens of the source, by default as many. What is done with them is shared out among the targets.
        """
        source, config = source or context, self.config
        inner, ratio = config.heads * config.head_width, source / context
        kv = 2 * config.width * inner * self.decoder.layers  # of the cross-attentions, made once a source token
        scores = 2 * self.decoder.layers * inner * source
        decoder = self.decoder.body_flops(context) - 2.0 * kv * (1 - ratio) + 2.0 * scores
        return 3 * (self.encoder.body_flops(source) * ratio + decoder + 2.0 * self.head_weight.numel())

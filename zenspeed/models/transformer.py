"""One configurable decoder Transformer: GPT-2, Llama and small modern GPTs are the same code under different configs.

    tokens (B, T) ─ embedding (+ learned positions) ─ blocks ─ norm ─ head ─ logits (B, T, V), or the loss if targets are given

Runs in fp32, under autocast (weights fp32, products bf16, residual stream fp32), and as a whole in bf16. The loss is made
here and not by the caller, because logits of all tokens need never exist to train (ops/loss.py).

Letters: B sequences, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.layers import Block, Embedding, KeyValueCache, Linear, NgramEmbedding, Norm, Shared
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.attention import make_mask
from zenspeed.ops.loss import linear_cross_entropy, token_losses
from zenspeed.ops.position import positions_in_documents, rotary_tables


class Transformer(nn.Module):
    """A decoder of `config.layers` blocks over a vocabulary of `vocab_size` tokens.

    Weights are drawn from torch's global generator of the CPU; call `init_weights(seed)` for others. Under
    `torch.device("meta")` nothing is drawn: use `model.to_empty(device=…)`, then `model.init_weights(seed)`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = Embedding(vocab_size, config.width)
        self.position = Embedding(config.context, config.width) if config.position == "learned" else None
        self.ngrams = NgramEmbedding(config) if config.ngrams else None
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.layers)])
        self.norm = Norm(config, config.width)
        # A tied head is no module of its own: a parameter with two owners is lost when a meta model is materialised.
        self.head = None if config.tie_embeddings else Linear(config.width, vocab_size, bias=False)
        if not self.embedding.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        targets: Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
    ) -> Tensor:
        """Logits (B, T, V), or the loss in nats (fp32) when `targets` are given.

        Args:
            tokens: (B, T) int64.
            documents: (B, T) numbers; a token sees only its own document, where learned positions start from 0.
            positions: (T,) or (B, T); default: from `documents`, else counted on from the cache, else 0, 1, 2 …
            cache: of `new_cache`; the tokens are appended and see what is in it. Not together with `documents`.
            targets: (B, T) int64, already shifted: targets[b, t] is predicted at tokens[b, t]; IGNORE (−100): no loss.
            reduction: `sum`: the sum of the losses, with gradient. `none`: each token's loss (B, T), without gradient.
        """
        hidden = self.hidden_states(tokens, documents, positions, cache)
        if targets is None:
            return self.logits(hidden)
        weight, softcap = self.head_weight, self.config.logit_softcap
        hidden, flat = hidden.flatten(0, 1), targets.flatten()
        if reduction == "sum":
            return linear_cross_entropy(hidden, weight, flat, softcap=softcap)
        return token_losses(hidden, weight, flat, softcap=softcap).view(targets.shape)

    def hidden_states(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, C) after the last norm. Arguments as for `forward`."""
        assert cache is None or documents is None, "a cache holds one document a row"
        num_new, start = tokens.shape[1], 0 if cache is None else cache.num_tokens
        x = self.embedding(tokens)  # (B, T, C)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        if positions is None:
            positions = torch.arange(start, start + num_new, device=tokens.device)
            if (self.position is not None or self.ngrams is not None) and documents is not None:
                positions = positions_in_documents(documents)
        if self.position is not None:
            x = x + self.position(positions)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, positions, cache)
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        # Attention inside a document depends on differences of positions only, so rotary needs no restart.
        config, rotary = self.config, None
        if config.position == "rotary":
            rotary = rotary_tables(positions, config.head_width, config.rotary_base, dtype)
        num_seen = num_new if cache is None else min(start + num_new, cache.max_tokens)
        shared = Shared(make_mask(num_new, num_seen, dtype, tokens.device, documents), rotary, cache)
        for block in self.blocks:
            x = block(x, shared)
        if cache is not None:
            cache.num_tokens += num_new
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states -> (…, V)."""
        logits, softcap = F.linear(hidden, self.head_weight), self.config.logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    @property
    def head_weight(self) -> Tensor:
        """(V, C); the embedding's own weight if tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def new_cache(
        self, batch: int, max_tokens: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> KeyValueCache:
        """An empty cache for `batch` sequences that attends to the last `max_tokens`; type and device as the weights."""
        weight, config = self.embedding.weight, self.config
        shape = (batch, config.num_kv_heads, max_tokens, config.head_width)
        return KeyValueCache(config.layers, shape, dtype or weight.dtype, torch.device(device or weight.device))

    @torch.no_grad()
    def init_weights(self, seed: int | torch.Generator | None = None) -> None:
        """Sets all weights. Drawn in fp32 on the CPU, so the same seed gives the same weights on every device.

        `seed`: a number, a CPU generator, or None for torch's global one. N(s): normal with standard deviation s.

        | parameter                      | zero_out                          | gpt2                          |
        |--------------------------------|-----------------------------------|-------------------------------|
        | embedding                      | N(1); N(0.02) if it is also head  | N(0.02)                       |
        | position                       | N(0.02)                           | N(0.02)                       |
        | ngrams                         | 0                                 | 0                             |
        | attention.qkv, feed_forward.up | N(1/√fan_in)                      | N(0.02)                       |
        | attention.out, feed_forward.down | 0: each block starts as identity | N(0.02/√(2·layers))          |
        | head                           | 0: the first loss is ln V         | N(0.02)                       |
        | norm weights / all biases      | 1 / 0                             | 1 / 0                         |
        """
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        modern, config = self.config.init == "zero_out", self.config
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "ngrams.weight":
                parameter.zero_()
                continue
            if parameter.ndim == 1:
                parameter.fill_(1)
                continue
            std = 0.02
            if name == "embedding.weight" and modern and not config.tie_embeddings:
                std = 1.0
            elif name.endswith((".out.weight", ".down.weight")):
                std = 0.0 if modern else 0.02 / math.sqrt(2 * config.layers)
            elif name == "head.weight" and modern:
                std = 0.0
            elif name.endswith((".qkv.weight", ".up.weight")) and modern:
                std = parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * std)

    def num_parameters(self) -> int:
        """Weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, context: int) -> float:
        """Floating-point operations of the matrix products of forward and backward for one token of a full sequence.

        A multiplication and an addition count as two; backward is twice the forward. Attention counts all `context`²
        scores, as `torch.utils.flop_counter` does, though the causal half of them is not needed.
        """
        in_blocks = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        scores = 2 * self.config.layers * self.config.width * context  # q kᵀ and weights · v
        return 3 * 2.0 * (in_blocks + self.head_weight.numel() + scores)

"""One configurable Transformer: GPT-2, Llama, BERT and small modern GPTs are the same code under different configs.

    tokens (B, T) ─ embedding (+ learned positions) ─ blocks ─ norm ─ hidden states (B, T, C)      `Body`
                                                                        └ head ─ logits, or loss   `Transformer`, a decoder

Runs in fp32, under autocast (weights fp32, products bf16, residual stream fp32), and as a whole in bf16. The loss is made
here and not by the caller, because logits of all tokens need never exist to train (ops/loss.py). Heads other than that of a
language model are in heads.py.

Letters: B sequences, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.initial import draw_weights
from zenspeed.models.layers import (
    Block,
    Dropout,
    Embedding,
    KeyValueCache,
    Linear,
    Memory,
    NgramEmbedding,
    Norm,
    RelativeBias,
    Shared,
)
from zenspeed.models.presets import ModelConfig
from zenspeed.models.recompute import run_again
from zenspeed.ops.attention import Places, cross_mask, make_mask
from zenspeed.ops.loss import IGNORE, linear_cross_entropy, product_dtype, token_losses
from zenspeed.ops.position import alibi_bias, positions_in_documents, rotary_tables, sinusoidal


class Body(nn.Module):
    """Blocks over a vocabulary of `vocab_size` tokens, without a head; causal if it is a decoder.

    Args:
        part: `encoder` or `decoder` of an encoder-decoder: it gets the embedding that both share with each call.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, part: Literal["encoder", "decoder"] | None = None) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.causal = (part or config.architecture) == "decoder"
        self.recompute = False
        """Blocks keep only what goes into them and are computed again in backward."""
        self.layers = config.decoder_layers or config.layers if part == "decoder" else config.layers
        self.embedding: Embedding = Embedding(vocab_size, config.width) if part is None else None  # type: ignore[assignment]
        self.position = Embedding(config.context, config.width) if config.position == "learned" else None
        self.token_types = Embedding(config.token_types, config.width) if config.token_types else None
        self.ngrams = NgramEmbedding(config) if config.ngrams else None
        self.embedding_norm = Norm(config, config.width) if config.embedding_norm else None
        self.dropout = Dropout(config.dropout)
        self.relative = RelativeBias(config, self.causal) if config.position == "relative" else None
        cross = part == "decoder"
        self.blocks = nn.ModuleList([Block(config, layer, cross) for layer in range(self.layers)])
        self.norm = Norm(config, config.width) if config.norm_placement == "pre" else None

    def hidden_states(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        token_types: Tensor | None = None,
        memory: Memory | None = None,
        embedding: Embedding | None = None,
        balance: list[Tensor] | None = None,
    ) -> Tensor:
        """What a head reads, (B, T, C) after the last norm.

        Args:
            tokens: (B, T) int64.
            documents: (B, T) numbers, −1 for padding; a token sees only its own document, where learned positions start
                from 0.
            positions: (T,) or (B, T); default: from `documents`, else counted on from the cache, else 0, 1, 2 …
            cache: of `new_cache`; the tokens are appended and see what is in it. Not together with `documents`.
            token_types: (B, T) int64; default: all 0.
            memory: of an encoder; that of the cache if there is one.
            embedding: of tokens, where the body has none of its own.
            balance: gets a balancing loss from every layer with experts.
        """
        assert cache is None or documents is None, "a cache holds one document a row"
        num_new, start = tokens.shape[1], 0 if cache is None else cache.num_tokens
        x = (embedding or self.embedding)(tokens)  # (B, T, C)
        if self.config.scale_embeddings:
            x = x * self.config.width**0.5
        dtype = product_dtype(x)
        if positions is None:
            positions = torch.arange(start, start + num_new, device=tokens.device)
            if self._positions_count and documents is not None:
                positions = positions_in_documents(documents)
        if self.position is not None:
            x = x + self.position(positions)
        elif self.config.position == "sinusoidal":
            x = x + sinusoidal(positions, self.config.width).to(x.dtype)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, positions, cache)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        # Attention inside a document depends on differences of positions only, so rotary needs no restart.
        config, rotary = self.config, None
        if config.position == "rotary":
            rotary = rotary_tables(positions, config.head_width, config.rotary_base, dtype)
        num_seen = num_new if cache is None else min(start + num_new, cache.max_tokens)
        bias = self._bias if config.position in ("relative", "alibi") else None
        places = cache.places(num_new) if cache is not None and (bias is not None or config.window is not None) else None
        compiled = any(block._compiled_call_impl is not None for block in self.blocks)  # each shape would be compiled anew
        mask = make_mask(
            num_new, num_seen, dtype, tokens.device, documents, self.causal, config.window, bias, places, not compiled
        )
        shared = Shared(mask, rotary, cache)
        if memory is not None or balance is not None or (cache is not None and cache.memory is not None):
            shared = _with_memory(shared, tokens, documents, cache.memory if cache and cache.memory else memory, dtype)
            real = None if documents is None else documents >= 0
            shared = shared._replace(balance=balance, real=real)
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            x = run_again(block, x, shared) if again else block(x, shared)
        if cache is not None:
            cache.num_tokens += num_new
        return x if self.norm is None else self.norm(x)

    @property
    def _positions_count(self) -> bool:
        """It matters where in its document a token stands, and not only how far from others."""
        return self.position is not None or self.ngrams is not None or self.config.position == "sinusoidal"

    def _bias(self, places: Places) -> Tensor:
        """What is added to the scores, (1, H, T, S)."""
        return alibi_bias(self.config.heads, *places) if self.relative is None else self.relative(places)

    def new_cache(
        self, batch: int, max_tokens: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> KeyValueCache:
        """An empty cache for `batch` sequences that attends to the last `max_tokens`; type and device as the weights."""
        weight, config = next(self.parameters()), self.config
        shape = (batch, config.num_kv_heads, max_tokens, config.head_width)
        return KeyValueCache(self.layers, shape, dtype or weight.dtype, torch.device(device or weight.device))

    @torch.no_grad()
    def init_weights(self, seed: int | torch.Generator | None = None) -> None:
        """Sets all weights, as in `initial.draw_weights`."""
        draw_weights(self, self.config, seed)

    def num_parameters(self) -> int:
        """Weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def body_flops(self, context: int) -> float:
        """Floating-point operations of the forward products of the blocks for one token of a sequence of `context`."""
        config = self.config
        in_blocks = sum(p.numel() * _share(name, config) for name, p in self.blocks.named_parameters() if p.ndim == 2)
        scores = 2 * self.layers * config.heads * config.head_width * context  # q kᵀ and weights · v
        return 2.0 * (in_blocks + scores)


def _share(name: str, config: ModelConfig) -> float:
    """Of a weight that is used for a token."""
    return config.experts_per_token / config.experts if ".experts." in name else 1.0


def _with_memory(shared: Shared, tokens: Tensor, documents: Tensor | None, memory: Memory | None, dtype: torch.dtype) -> Shared:
    if memory is None:
        return shared
    if documents is None:  # one document a row: its source is what is not padding
        source = torch.where(memory.documents >= 0, 0, -1)
        documents = torch.zeros_like(tokens)
    else:
        source = memory.documents
    mask, sees = cross_mask(documents, source, dtype)
    return shared._replace(memory=memory, memory_mask=mask, sees=sees)


def balance_loss(balance: list[Tensor], config: ModelConfig, targets: Tensor) -> Tensor:
    """The layers' mean, weighted, for as many nats as there are targets."""
    return torch.stack(balance).mean() * config.expert_balance * (targets != IGNORE).sum()


class Transformer(Body):
    """A decoder with the head of a language model.

    Weights are drawn from torch's global generator of the CPU; call `init_weights(seed)` for others. Under
    `torch.device("meta")` nothing is drawn: use `model.to_empty(device=…)`, then `model.init_weights(seed)`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
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
            tokens, documents, positions, cache: as for `hidden_states`.
            targets: (B, T) int64, already shifted: targets[b, t] is predicted at tokens[b, t]; IGNORE (−100): no loss.
            reduction: `sum`: the sum of the losses, with gradient. `none`: each token's loss (B, T), without gradient.
        """
        wanted = self.config.experts and self.training and targets is not None and torch.is_grad_enabled()
        balance: list[Tensor] | None = [] if wanted else None
        hidden = self.hidden_states(tokens, documents, positions, cache, balance=balance)
        if targets is None:
            return self.logits(hidden)
        weight, softcap = self.head_weight, self.config.logit_softcap
        hidden, flat = self._scaled(hidden).flatten(0, 1), targets.flatten()
        if reduction == "sum":
            loss = linear_cross_entropy(hidden, weight, flat, softcap=softcap)
            return loss + balance_loss(balance, self.config, targets) if balance else loss
        return token_losses(hidden, weight, flat, softcap=softcap).view(targets.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states -> (…, V)."""
        logits, softcap = F.linear(self._scaled(hidden), self.head_weight), self.config.logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def _scaled(self, hidden: Tensor) -> Tensor:
        """µP's multiplier of the output (2203.03466, table 8)."""
        ratio = self.config.width_ratio
        return hidden if ratio == 1.0 else hidden / ratio

    @property
    def head_weight(self) -> Tensor:
        """(V, C); the embedding's own weight if tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def flops_per_token(self, context: int) -> float:
        """Floating-point operations of the matrix products of forward and backward for one token of a full sequence.

        A multiplication and an addition count as two; backward is twice the forward. Attention counts all `context`²
        scores, as `torch.utils.flop_counter` does, though the causal half of them is not needed.
        """
        return 3 * (self.body_flops(context) + 2.0 * self.head_weight.numel())

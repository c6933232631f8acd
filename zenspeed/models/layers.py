"""The parts of a Transformer: linear layer, norm, attention, feed-forward, block, and the cache of keys and values.

No part initialises its own weights: models/initial.py does, in one place.

Letters: B sequences, T tokens, C width of the residual stream, H query heads, G key and value heads, D head width,
F inner width of the feed-forward part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.presets import ModelConfig
from zenspeed.ops.activation import activate
from zenspeed.ops.attention import Mask, attention
from zenspeed.ops.ngram import ngram_rows
from zenspeed.ops.norm import layernorm, rmsnorm
from zenspeed.ops.position import Rotary, split_heads


class Linear(nn.Linear):
    """nn.Linear that leaves its weights unset."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding that leaves its weights unset."""

    def reset_parameters(self) -> None:
        pass


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension of size `width`."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.kind, self.epsilon = config.norm, config.norm_epsilon
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias and config.norm == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return rmsnorm(x, self.weight, self.epsilon)
        return layernorm(x, self.weight, self.bias, self.epsilon)


class NgramEmbedding(nn.Module):
    """The sum of hashed embeddings of the n-grams that end at each token, (B, T) -> (B, T, C).

    `weight` holds the tables of all orders, one below the other.
    An n-gram that reaches back beyond its document, or beyond the window, is left out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.orders, self.rows, self.dropout = config.ngrams, config.ngram_rows, config.ngram_dropout
        self.weight = nn.Parameter(torch.empty(len(self.orders) * self.rows, config.width))

    def forward(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache | None) -> Tensor:
        """`positions` (T,) or (B, T) of the tokens in their documents; earlier tokens come from the cache."""
        num_new, reach = tokens.shape[1], max(self.orders) - 1
        if cache is not None:
            tokens = cache.recall(tokens, reach)
        rows, there = [], []
        for index, order in enumerate(self.orders):
            rows.append(ngram_rows(tokens, order, self.rows)[:, -num_new:] + index * self.rows)
            there.append((positions >= order - 1).expand(rows[-1].shape))
        mask = torch.stack(there, -1)  # (B, T, N)
        if self.dropout and self.training:
            mask = mask & (torch.rand(mask.shape, device=mask.device) >= self.dropout)
        weights = mask.to(self.weight.dtype)
        bags = torch.stack(rows, -1)
        flat = F.embedding_bag(bags.flatten(0, 1), self.weight, per_sample_weights=weights.flatten(0, 1), mode="sum")
        return flat.unflatten(0, bags.shape[:2])


class KeyValueCache:
    """Keys and values of the tokens seen so far: for each layer two tensors (B, G, max_tokens, D), allocated once.

    A ring: once `max_tokens` are seen, each new token takes the place of the oldest, so that the model attends to the last
    `max_tokens`. Keys are stored after rotary embedding; only differences of positions count, so that nothing is recomputed.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.max_tokens = shape[2]
        self.num_tokens = 0
        """Tokens seen so far; more than `max_tokens` once the ring has gone round."""
        self._recent: Tensor | None = None

    def recall(self, tokens: Tensor, reach: int) -> Tensor:
        """`tokens` (B, T) behind the up to `reach` tokens before them; remembers the last ones for the next call."""
        if self._recent is not None:
            tokens = torch.cat([self._recent, tokens], dim=1)
        self._recent = tokens[:, -reach:]
        return tokens

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, G, T, D) of new tokens; the keys and values to attend to, (B, G, S, D)."""
        start, end = self.num_tokens, self.num_tokens + k.shape[2]
        if end > self.max_tokens:
            assert k.shape[2] == 1, f"{k.shape[2]} tokens at once do not fit behind {start} of {self.max_tokens}"
            start, end = start % self.max_tokens, start % self.max_tokens + 1
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        seen = min(self.num_tokens + k.shape[2], self.max_tokens)
        return self.keys[layer][:, :, :seen], self.values[layer][:, :, :seen]


class Shared(NamedTuple):
    """What all blocks of one forward have in common."""

    mask: Mask
    rotary: Rotary | None
    cache: KeyValueCache | None


class Attention(nn.Module):
    """Self-attention with H query and G key and value heads, one fused projection into all of them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = config.heads, config.num_kv_heads, config.head_width
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=config.bias)
        self.norm_epsilon = config.norm_epsilon if config.qk_norm else None
        self.out = Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        B, T, C = x.shape
        q, k, v = split_heads(self.qkv(x), self.heads, self.kv_heads, shared.rotary, self.norm_epsilon)
        if shared.cache is not None:
            k, v = shared.cache.append(self.layer, k, v)
        y = attention(q, k, v, shared.mask)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    """down(activation(up(x))). With swiglu `up` holds the gate's rows first, then the rows that it gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        gated = config.activation == "swiglu"
        self.up = Linear(config.width, config.inner_width * (2 if gated else 1), bias=config.bias)
        self.down = Linear(config.inner_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); with norms after the sums, norm(x + attention(x)) and so on.

    Shards and compiles as one unit.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config, config.width)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = Norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout, self.post = config.dropout, config.norm_placement == "post"

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        if self.post:
            x = self.attention_norm(x + self._drop(self.attention(x, shared)))
            return self.feed_forward_norm(x + self._drop(self.feed_forward(x)))
        x = x + self._drop(self.attention(self.attention_norm(x), shared))
        return x + self._drop(self.feed_forward(self.feed_forward_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

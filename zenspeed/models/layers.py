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
from zenspeed.ops.attention import Mask, Places, attention
from zenspeed.ops.dropout import dropout
from zenspeed.ops.float8 import fits, float8_linear
from zenspeed.ops.ngram import ngram_rows
from zenspeed.ops.norm import layernorm, rmsnorm
from zenspeed.ops.position import Rotary, apply_rotary, relative_buckets, split_heads


class Linear(nn.Linear):
    """nn.Linear that leaves its weights unset. With `float8` its products are in fp8 while gradients are wanted."""

    float8 = False

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if self.float8 and torch.is_grad_enabled():
            return float8_linear(input, self.weight, self.bias)
        return super().forward(input)


def use_float8(model: nn.Module) -> int:
    """Has the blocks of `model` train in fp8 where their sizes allow it; the number of layers that do. Heads are left alone."""
    inside = [m for name, m in model.named_modules() if "blocks" in name.split(".") and isinstance(m, Linear)]
    chosen = [layer for layer in inside if fits(layer.out_features, layer.in_features)]
    for layer in chosen:
        layer.float8 = True
    return len(chosen)


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


class Dropout(nn.Module):
    """Sets a share of elements to 0 in training and scales the others up, so that the mean stays (Srivastava et al. 2014).

    Draws from `generator`, or from torch's own, which all threads share, where it is None.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share, self.generator) if self.share and self.training else x


class NgramEmbedding(nn.Module):
    """The sum of hashed embeddings of the n-grams that end at each token, (B, T) -> (B, T, C).

    `weight` holds the tables of all orders, one below the other.
    An n-gram that reaches back beyond its document, or beyond the window, is left out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.orders, self.rows, self.dropout = config.ngrams, config.ngram_rows, config.ngram_dropout
        self.weight = nn.Parameter(torch.empty(len(self.orders) * self.rows, config.width))
        self.generator: torch.Generator | None = None  # as of `Dropout`

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
            mask = mask & (torch.rand(mask.shape, device=mask.device, generator=self.generator) >= self.dropout)
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
        self.memory: Memory | None = None
        """What an encoder has read, for a decoder."""

    def select(self, rows: Tensor) -> None:
        """Keeps these rows (N,), in this order, one of them as often as it is named: what a beam search needs."""
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]
        self._recent = None if self._recent is None else self._recent.index_select(0, rows)
        self.memory = None if self.memory is None else self.memory.select(rows)

    def places(self, num_new: int) -> Places:
        """Where the next `num_new` tokens and the seen ones, with these, stand; call before they are appended."""
        device, end = self.keys[0].device, self.num_tokens + num_new
        slots = torch.arange(min(end, self.max_tokens), device=device)
        seen = slots if end <= self.max_tokens else end - 1 - (end - 1 - slots) % self.max_tokens
        return torch.arange(self.num_tokens, end, device=device), seen

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


class Memory(NamedTuple):
    """What a decoder sees of its source."""

    documents: Tensor
    """(B, S) number of each source token's document, −1 for padding."""
    hidden: Tensor | None
    """(B, S, C) of the encoder; None where only keys and values are kept."""
    keys: list[tuple[Tensor, Tensor]]
    """For each layer of the decoder keys and values (B, H, S, D); empty while training."""

    def select(self, rows: Tensor) -> Memory:
        keys = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.keys]
        return Memory(self.documents.index_select(0, rows), None, keys)


class Shared(NamedTuple):
    """What all blocks of one forward have in common."""

    mask: Mask
    rotary: Rotary | None
    cache: KeyValueCache | None
    memory: Memory | None = None
    memory_mask: Mask | None = None
    sees: Tensor | None = None
    """(B, 1, T, 1), false for tokens that see nothing of the memory; None: all do."""
    balance: list[Tensor] | None = None
    """Where experts put their balancing losses; None: not wanted."""
    real: Tensor | None = None
    """(B, T), false for padding; None: there is none."""


class Attention(nn.Module):
    """Self-attention with H query and G key and value heads, one fused projection into all of them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = config.heads, config.num_kv_heads, config.head_width
        bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=bias)
        self.norm_epsilon = config.norm_epsilon if config.qk_norm else None
        self.scale = config.attention_scale
        self.out = Linear(self.heads * self.head_width, config.width, bias=config.bias)
        weights = config.qk_norm and config.qk_norm_weights
        self.q_norm = nn.Parameter(torch.empty(self.head_width)) if weights else None
        self.k_norm = nn.Parameter(torch.empty(self.head_width)) if weights else None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        B, T, _ = x.shape
        if self.q_norm is None:
            q, k, v = split_heads(self.qkv(x), self.heads, self.kv_heads, shared.rotary, self.norm_epsilon)
        else:
            q, k, v = self._split_with_weights(self.qkv(x), shared.rotary)
        if shared.cache is not None:
            k, v = shared.cache.append(self.layer, k, v)
        y = attention(q, k, v, shared.mask, self.scale)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def _split_with_weights(self, qkv: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights do not commute with a rotation, so the norms come first."""
        q, k, v = split_heads(qkv, self.heads, self.kv_heads)
        assert self.norm_epsilon is not None
        q, k = rmsnorm(q, self.q_norm, self.norm_epsilon), rmsnorm(k, self.k_norm, self.norm_epsilon)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        return q, k, v


class CrossAttention(nn.Module):
    """Attention of a decoder to what the encoder has read."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.scale = config.attention_scale
        inner = config.heads * config.head_width
        bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.q = Linear(config.width, inner, bias=bias)
        self.kv = Linear(config.width, 2 * inner, bias=bias)
        self.out = Linear(inner, config.width, bias=config.bias)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        assert shared.memory is not None
        assert shared.memory_mask is not None
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = shared.memory.keys[self.layer] if shared.memory.keys else self.read(shared.memory.hidden)
        y = attention(q, k, v, shared.memory_mask, self.scale)  # (B, H, T, D)
        if shared.sees is not None:
            y = y * shared.sees
        return self.out(y.transpose(1, 2).flatten(2))

    def read(self, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of hidden (B, S, C)."""
        assert hidden is not None
        k, v = self.kv(hidden).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return k, v


class RelativeBias(nn.Module):
    """T5's: what is added to a score depends on the head and on a bucket of the distance. One for all layers of a stack."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.num, self.furthest, self.causal = config.relative_buckets, config.relative_distance, causal
        self.weight = nn.Parameter(torch.empty(self.num, config.heads))

    def forward(self, places: Places) -> Tensor:
        """(1, H, T, S)"""
        queries, keys = places
        buckets = relative_buckets(keys - queries[:, None], self.num, self.furthest, self.causal)  # (T, S)
        return F.embedding(buckets, self.weight).permute(2, 0, 1).unsqueeze(0)


class FeedForward(nn.Module):
    """down(activation(up(x))). Of a gated one, `up` holds the gate's rows first, then the rows that it gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.width, config.inner_width * (2 if config.gated else 1), bias=config.bias)
        self.down = Linear(config.inner_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


class Experts(nn.Module):
    """Several feed-forward parts; each token goes through the few that a router likes best (Shazeer et al. 1701.06538).

    A token's result is the sum of theirs, weighted by the softmax over the chosen. No token is ever dropped.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.router = Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList([FeedForward(config) for _ in range(config.experts)])

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        flat = x.flatten(0, 1)  # (N, C)
        scores = self.router(flat).float()  # (N, E)
        best, chosen = scores.topk(self.per_token, dim=-1)  # (N, K)
        weights = best.softmax(-1)
        if shared.balance is not None:
            real = slice(None) if shared.real is None else shared.real.flatten()
            shared.balance.append(_balance(scores[real], chosen[real]))
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):  # an expert without tokens runs too: every rank has its gradient
            token, rank = (chosen == number).nonzero(as_tuple=True)
            part = expert(flat[token]) * weights[token, rank].unsqueeze(1)
            out = out.index_add(0, token, part.to(out.dtype))
        return out.view(x.shape)


def _balance(scores: Tensor, chosen: Tensor) -> Tensor:
    """E · Σ share of choices · mean probability: 1 if experts are used evenly (Fedus et al. 2101.03961, eq. 4)."""
    experts = scores.shape[1]
    shares = torch.bincount(chosen.flatten(), minlength=experts) / max(1, chosen.numel())
    return experts * (shares * scores.softmax(-1).mean(0)).sum() if len(scores) else scores.sum()


class Block(nn.Module):
    """Self-attention, in a decoder that has a source attention to it, feed-forward. Shards and compiles as one unit.

    pre     x + part(norm(x))      post     norm(x + part(x))      rezero     x + alpha · part(x)
    """

    def __init__(self, config: ModelConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        normed = config.norm_placement != "rezero"
        self.attention_norm = Norm(config, config.width) if normed else None
        self.attention = Attention(config, layer)
        self.cross_norm = Norm(config, config.width) if cross and normed else None
        self.cross = CrossAttention(config, layer) if cross else None
        self.feed_forward_norm = Norm(config, config.width) if normed else None
        self.feed_forward = Experts(config) if config.experts else FeedForward(config)
        self.alpha = None if normed else nn.Parameter(torch.empty(1))
        self.dropout, self.pre = Dropout(config.dropout), config.norm_placement == "pre"

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        x = self._close(x, self.attention(self._open(x, self.attention_norm), shared), self.attention_norm)
        if self.cross is not None:
            x = self._close(x, self.cross(self._open(x, self.cross_norm), shared), self.cross_norm)
        y = self._open(x, self.feed_forward_norm)
        y = self.feed_forward(y, shared) if isinstance(self.feed_forward, Experts) else self.feed_forward(y)
        return self._close(x, y, self.feed_forward_norm)

    def _open(self, x: Tensor, norm: Norm | None) -> Tensor:
        return norm(x) if self.pre and norm is not None else x

    def _close(self, x: Tensor, part: Tensor, norm: Norm | None) -> Tensor:
        part = self.dropout(part)
        if self.alpha is not None:
            return x + self.alpha * part
        return x + part if self.pre or norm is None else norm(x + part)

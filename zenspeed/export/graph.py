"""The models as functions of tensors alone, with sizes that may change, for runtimes that know nothing of ours.

    decoder   tokens (B, T), mask (B, P + T), past (L, 2, B, G, P, D)  ->  logits (B, T, V), past (L, 2, B, G, P + T, D)
    encoder   tokens (B, T), mask (B, T), token_types (B, T)           ->  what the head gives

An encoder-decoder is two graphs: one reads a source, the other is a decoder with what was read as two more inputs.

    source    tokens (B, S), mask (B, S)                               ->  memory (L, 2, B, H, S, D)
    target    … of a decoder, source_mask (B, S), memory               ->  … of a decoder

`mask` is 1 where there is text; padding stands left of a decoder's text and right of an encoder's. `past` holds the keys and
values of the tokens before, so that one graph reads a prompt and then goes on token by token. It has at least one place: a
text begins with one of zeros whose mask is 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.models.build import Model
from zenspeed.models.encoder_decoder import EncoderDecoder
from zenspeed.models.heads import EmbeddingHead, LabelHead, SpanHead
from zenspeed.models.layers import Embedding, Memory, Shared
from zenspeed.models.transformer import Body, Transformer
from zenspeed.ops.attention import Mask
from zenspeed.ops.position import alibi_bias, rotary_tables, sinusoidal


class _Past:
    """A cache of one forward: keys and values of earlier tokens in front of the new ones."""

    def __init__(self, past: Tensor) -> None:
        self._past = past
        self.present: list[Tensor] = []
        self.memory = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self._past[layer], torch.stack([k, v])], dim=3)  # (2, B, G, P + T, D)
        self.present.append(both)
        return both[0], both[1]


def _embed(
    body: Body, tokens: Tensor, positions: Tensor, token_types: Tensor | None = None, embedding: Embedding | None = None
) -> Tensor:
    """`embedding`: of tokens, where the body has none of its own."""
    config = body.config
    x = (embedding or body.embedding)(tokens)
    if config.scale_embeddings:
        x = x * config.width**0.5
    if body.position is not None:
        x = x + body.position(positions)
    elif config.position == "sinusoidal":
        x = x + sinusoidal(positions, config.width).to(x.dtype)
    if body.token_types is not None and token_types is not None:
        x = x + body.token_types(token_types)
    return x if body.embedding_norm is None else body.embedding_norm(x)


def _shared(body: Body, positions: Tensor, allowed: Tensor, queries: Tensor, keys: Tensor, past: _Past | None) -> Shared:
    """`allowed` (B, T, S): what may be seen. `queries` (T,), `keys` (S,): places in the row."""
    config = body.config
    if config.window is not None:
        distance = queries[:, None] - keys
        allowed = allowed & (distance < config.window) & (distance > -config.window)
    bias = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -math.inf).unsqueeze(1)
    if body.relative is not None:
        bias = bias + body.relative((queries, keys))
    elif config.position == "alibi":
        bias = bias + alibi_bias(config.heads, queries, keys)
    rotary = None
    if config.position == "rotary":
        rotary = rotary_tables(positions, config.head_width, config.rotary_base, torch.float32)
    return Shared(Mask(bias, causal=False, plain=True), rotary, past)  # type: ignore[arg-type]


class DecoderGraph(nn.Module):
    """A language model with its past."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        if model.config.ngrams or model.config.experts:
            raise InputError(
                "export: n-gram tables and experts have no graph of tensors alone; train without model.ngrams, experts"
            )
        self.model = model

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of sizes that are none of the special ones."""
        config = self.model.config
        past = torch.zeros(config.layers, 2, 2, config.num_kv_heads, 3, config.head_width)
        return torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64), past

    def forward(self, tokens: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x, present = _decode(self.model, tokens, mask, past)
        return self.model.logits(x), present


def _decode(
    body: Body,
    tokens: Tensor,
    mask: Tensor,
    past: Tensor,
    embedding: Embedding | None = None,
    source_mask: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, C) of new tokens, and the longer past."""
    num_past, num_new = past.shape[4], tokens.shape[1]
    seen = torch.arange(num_past + num_new, device=tokens.device)
    queries = seen[num_past:]
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, num_past:]  # (B, T), counted from where the text begins
    # A place that is padding sees itself, so that no row of scores is empty.
    allowed = (seen[None, None, :] <= queries[None, :, None]) & (mask[:, None, :] > 0)
    allowed = allowed | (seen[None, None, :] == queries[None, :, None])
    cache = _Past(past)
    shared = _shared(body, positions, allowed, queries, seen, cache)
    if source_mask is not None and memory is not None:
        hidden = torch.zeros(source_mask.shape, device=tokens.device).masked_fill(source_mask == 0, -math.inf)
        read = Memory(source_mask, None, [(memory[layer, 0], memory[layer, 1]) for layer in range(body.layers)])
        shared = shared._replace(memory=read, memory_mask=Mask(hidden[:, None, None], causal=False, plain=True))
    x = _embed(body, tokens, positions, embedding=embedding)
    for block in body.blocks:
        x = block(x, shared)
    return x if body.norm is None else body.norm(x), torch.stack(cache.present)


class SourceGraph(nn.Module):
    """The half of an encoder-decoder that reads: keys and values of the source for every layer of the other half."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        if model.config.experts:
            raise InputError("export: experts have no graph of tensors alone; train without model.experts")
        self.model = model

    def example(self) -> tuple[Tensor, Tensor]:
        """Inputs of sizes that are none of the special ones."""
        return torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        model, body = self.model, self.model.encoder
        places, real = torch.arange(tokens.shape[1], device=tokens.device), mask > 0
        shared = _shared(body, places[None].expand(tokens.shape), real[:, None, :] == real[:, :, None], places, places, None)
        x = _embed(body, tokens, places[None].expand(tokens.shape), embedding=model.embedding)
        for block in body.blocks:
            x = block(x, shared)
        x = x if body.norm is None else body.norm(x)
        return torch.stack([torch.stack(block.cross.read(x)) for block in model.decoder.blocks])  # type: ignore[union-attr, operator]


class TargetGraph(nn.Module):
    """The half of an encoder-decoder that writes."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of sizes that are none of the special ones."""
        config, layers = self.model.config, self.model.decoder.layers
        past = torch.zeros(layers, 2, 2, config.num_kv_heads, 3, config.head_width)
        memory = torch.zeros(layers, 2, 2, config.heads, 5, config.head_width)
        ones = torch.ones(2, 7, dtype=torch.int64)
        return torch.zeros(2, 4, dtype=torch.int64), ones, past, ones[:, :5].clone(), memory

    def forward(self, tokens: Tensor, mask: Tensor, past: Tensor, source_mask: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        x, present = _decode(model.decoder, tokens, mask, past, model.embedding, source_mask, memory)
        return model.logits(x), present


class EncoderGraph(nn.Module):
    """An encoder under the head of a label, a span, an embedding, or of masked words."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not isinstance(model.body, Body) or model.body.config.experts or model.body.config.ngrams:
            raise InputError("export: only Transformers without experts and n-gram tables have a graph of tensors alone")
        self.body, self.head = model.body, model.head

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of sizes that are none of the special ones."""
        tokens = torch.zeros(2, 5, dtype=torch.int64)
        return tokens, torch.ones(2, 5, dtype=torch.int64), torch.zeros_like(tokens)

    def forward(self, tokens: Tensor, mask: Tensor, token_types: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        positions = places[None].expand(tokens.shape)
        real = mask > 0
        allowed = real[:, None, :] == real[:, :, None]  # padding sees padding alone
        if self.body.causal:
            allowed = allowed & (places[None, None, :] <= places[None, :, None])
        x = _embed(self.body, tokens, positions, token_types)
        shared = _shared(self.body, positions, allowed, places, places, None)
        for block in self.body.blocks:
            x = block(x, shared)
        x = x if self.body.norm is None else self.body.norm(x)
        return self._head(x, mask)

    def _head(self, x: Tensor, mask: Tensor) -> Tensor:
        head = self.head
        if isinstance(head, SpanHead):
            return head.score(x)
        if isinstance(head, LabelHead | EmbeddingHead):
            pooled = _pool(x, mask, head.pool)
            if isinstance(head, EmbeddingHead):
                return F.normalize(pooled, dim=1)
            return head.score(pooled if head.pooler is None else head.pooler(pooled).tanh())
        raise InputError(f"export: no graph for the head {type(head).__name__}")


def _pool(x: Tensor, mask: Tensor, how: str) -> Tensor:
    """(B, C) of x (B, T, C), text on the left."""
    if how == "first":
        return x[:, 0]
    if how == "mean":
        weights = mask.to(x.dtype).unsqueeze(-1)
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1)
    last = (mask.sum(1) - 1).clamp(min=0)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)


Graph = DecoderGraph | EncoderGraph | SourceGraph | TargetGraph


def graphs_of(model: nn.Module) -> dict[str, Graph]:
    """The graphs of a model in evaluation mode, by the name of their file.

    Raises:
        InputError: there is none for its architecture.
    """
    if isinstance(model, Transformer):
        return {"model": DecoderGraph(model).eval()}
    if isinstance(model, EncoderDecoder):
        return {"encoder": SourceGraph(model).eval(), "decoder": TargetGraph(model).eval()}
    if isinstance(model, Model):
        return {"model": EncoderGraph(model).eval()}
    raise InputError(f"export: no graph for {type(model).__name__}; take --to hf")


def dynamic_shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """Which sizes may change, for torch.export; how they depend on each other (P + T) it finds by itself."""
    auto = torch.export.Dim.AUTO
    return tuple({2: auto, 4: auto} if name in ("past", "memory") else {0: auto, 1: auto} for name in NAMES[type(graph)][0])


NAMES: dict[type[nn.Module], tuple[list[str], list[str]]] = {
    DecoderGraph: (["tokens", "mask", "past"], ["logits", "present"]),
    EncoderGraph: (["tokens", "mask", "token_types"], ["output"]),
    SourceGraph: (["tokens", "mask"], ["memory"]),
    TargetGraph: (["tokens", "mask", "past", "source_mask", "memory"], ["logits", "present"]),
}
"""Names of inputs and outputs."""

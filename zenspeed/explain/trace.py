"""One sentence through one model, every number of it: the formulas of the paper over the model's own weights, step by step.

    tokens ─ embedding ─ + positions ─ blocks: q, k, v ─ scores ─ softmax ─ heads ─ sum ─ feed-forward ─ … ─ head

The numbers are computed here a second time, in fp64 and by the plain formula of each part, and not read out of the forward
pass. `check` then holds each block and the end against what the model itself gives.

Letters: T tokens, C width, H query heads, G key and value heads, D head width, F inner width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zenspeed.models.encoder_decoder import EncoderDecoder
from zenspeed.models.layers import Attention, Block, CrossAttention, Experts, FeedForward, Norm
from zenspeed.models.transformer import Body
from zenspeed.ops.attention import make_mask

TOLERANCE = 1e-4
"""Largest difference from the model's fp32 forward pass, as a share of the largest number there."""


class Step(NamedTuple):
    """A table of numbers: rows are tokens unless `rows` names them."""

    part: str
    """embedding, encoder block 1, decoder block 2, head …"""
    name: str
    formula: str
    value: Tensor
    """(rows, columns) fp64"""
    rows: list[str]
    columns: list[str] | None = None
    """Names of columns; None: they are numbered."""


class Trace:
    """Steps in order, and what is to be compared with the model: (name, our value, its value)."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.checks: list[tuple[str, float]] = []
        """Name, and difference as a share of the largest number."""

    def add(
        self, part: str, name: str, formula: str, value: Tensor, rows: list[str], columns: list[str] | None = None
    ) -> Tensor:
        self.steps.append(Step(part, name, formula, value, rows, columns))
        return value

    def compare(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Raises ArithmeticError where they differ by more than `TOLERANCE`."""
        theirs = theirs.double()
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        self.checks.append((name, difference))
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"{name}: the formulas give other numbers than the model: they differ by {difference:.1e}")


class Memory(NamedTuple):
    """What a decoder's cross-attention reads."""

    hidden: Tensor
    rows: list[str]


def trace_body(
    trace: Trace, body: Body, part: str, tokens: Tensor, rows: list[str], embedding: nn.Embedding, memory: Memory | None = None
) -> Tensor:
    """All steps of a body over `tokens` (T,): hidden states (T, C) in fp64."""
    config, positions = body.config, torch.arange(len(tokens))
    x = trace.add(part, "embedding", "e = E[token]", embedding.weight[tokens].double(), rows)
    if config.scale_embeddings:
        x = trace.add(part, "scaled", f"e · √{config.width}", x * config.width**0.5, rows)
    if body.position is not None:
        p = trace.add(part, "positions", "p = P[place], learned", body.position.weight[positions].double(), rows)
        x = trace.add(part, "with positions", "x = e + p", x + p, rows)
    elif config.position == "sinusoidal":
        formula = "p[2i] = sin(place / 10000^(2i/C)), p[2i+1] = cos(place / 10000^(2i/C))"
        p = trace.add(part, "positions", formula, _sinusoidal(len(tokens), config.width), rows)
        x = trace.add(part, "with positions", "x = e + p", x + p, rows)
    if body.token_types is not None:
        x = trace.add(part, "with token types", "x = x + S[0]", x + body.token_types.weight[0].double(), rows)
    if body.ngrams is not None:
        n = body.ngrams(tokens[None], positions, None)[0].double()
        x = trace.add(part, "with n-grams", "x = x + Σ N[hash of the last n tokens]", x + n, rows)
    if body.embedding_norm is not None:
        x = _norm(trace, part, "normalized", body.embedding_norm, x, rows)
    bias = body._bias if config.position in ("relative", "alibi") else None
    mask = make_mask(len(tokens), len(tokens), torch.float32, tokens.device, None, body.causal, config.window, bias)
    allowed = mask.bias
    if mask.causal:
        allowed = torch.zeros(len(tokens), len(tokens)).masked_fill_(
            ~torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril(), -math.inf
        )
    for number, block in enumerate(body.blocks, 1):
        assert isinstance(block, Block)
        x = _block(trace, f"{part} block {number}", body, block, x, rows, allowed, memory)
    if body.norm is not None:
        x = _norm(trace, part, "last norm", body.norm, x, rows)
    return x


def _block(
    trace: Trace,
    part: str,
    body: Body,
    block: Block,
    x: Tensor,
    rows: list[str],
    bias: Tensor | None,
    memory: Memory | None,
) -> Tensor:
    y = _open(trace, part, block, block.attention_norm, x, rows)
    y = _self_attention(trace, part, body, block.attention, y, rows, bias)
    x = _close(trace, part, "attention", block, block.attention_norm, x, y, rows)
    if block.cross is not None:
        assert memory is not None
        y = _open(trace, part, block, block.cross_norm, x, rows)
        y = _cross_attention(trace, part, block.cross, y, rows, memory)
        x = _close(trace, part, "attention to the source", block, block.cross_norm, x, y, rows)
    y = _open(trace, part, block, block.feed_forward_norm, x, rows)
    y = _feed_forward(trace, part, block.feed_forward, y, rows)
    return _close(trace, part, "feed-forward", block, block.feed_forward_norm, x, y, rows)


def _open(trace: Trace, part: str, block: Block, norm: Norm | None, x: Tensor, rows: list[str]) -> Tensor:
    return _norm(trace, part, "normalized", norm, x, rows) if block.pre and norm is not None else x


def _close(
    trace: Trace, part: str, name: str, block: Block, norm: Norm | None, x: Tensor, y: Tensor, rows: list[str]
) -> Tensor:
    if block.alpha is not None:
        alpha = block.alpha.double()
        return trace.add(part, f"{name} added", f"x + {float(alpha):.4g} · y", x + alpha * y, rows)
    x = trace.add(part, f"{name} added", "x + y", x + y, rows)
    return x if block.pre or norm is None else _norm(trace, part, "normalized", norm, x, rows)


def _norm(trace: Trace, part: str, name: str, norm: Norm, x: Tensor, rows: list[str]) -> Tensor:
    if norm.kind == "rmsnorm":
        formula = "x / √(mean(x²) + ε) · w"
        y = x / (x.square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.double()
    else:
        formula = "(x − mean) / √(variance + ε) · w" + (" + b" if norm.bias is not None else "")
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.double()
        y = y if norm.bias is None else y + norm.bias.double()
    return trace.add(part, name, formula, y, rows)


def _self_attention(
    trace: Trace, part: str, body: Body, layer: Attention, x: Tensor, rows: list[str], bias: Tensor | None
) -> Tensor:
    H, G, D = layer.heads, layer.kv_heads, layer.head_width
    q, k, v = _linear(layer.qkv, x).split((H * D, G * D, G * D), dim=-1)
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(0, 1) for t in (q, k, v))  # (heads, T, D)
    more = ""
    if layer.norm_epsilon is not None:
        q, k = _unit(q, layer.q_norm, layer.norm_epsilon), _unit(k, layer.k_norm, layer.norm_epsilon)
        more += ", normalized"
    if body.config.position == "rotary":
        q, k = _rotated(q, body.config.rotary_base), _rotated(k, body.config.rotary_base)
        more += ", turned by its place"
    scale = D**-0.5 if layer.scale is None else layer.scale
    return _heads(trace, part, q, k, v, rows, rows, scale, bias, layer.out, more)


def _cross_attention(trace: Trace, part: str, layer: CrossAttention, x: Tensor, rows: list[str], memory: Memory) -> Tensor:
    q = _linear(layer.q, x).unflatten(-1, (layer.heads, -1)).transpose(0, 1)
    k, v = _linear(layer.kv, memory.hidden).unflatten(-1, (2 * layer.heads, -1)).transpose(0, 1).chunk(2)
    scale = q.shape[-1] ** -0.5 if layer.scale is None else layer.scale
    return _heads(trace, f"{part}, source", q, k, v, rows, memory.rows, scale, None, layer.out, "")


def _heads(
    trace: Trace,
    part: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: list[str],
    seen: list[str],
    scale: float,
    bias: Tensor | None,
    out: nn.Linear,
    more: str,
) -> Tensor:
    results = []
    for head in range(len(q)):
        shared = head * len(k) // len(q)  # the key head of a group
        name = f"head {head + 1}"
        trace.add(part, f"{name}: queries", f"q = x W_q{more}", q[head], rows)
        trace.add(part, f"{name}: keys", f"k = x W_k{more}", k[shared], seen)
        trace.add(part, f"{name}: values", "v = x W_v", v[shared], seen)
        scores = q[head] @ k[shared].T * scale
        formula = f"q kᵀ · {scale:.4g}"
        if bias is not None:
            mine = bias.double()
            while mine.ndim > 2:
                mine = mine[min(head, len(mine) - 1)] if mine.ndim == 3 else mine[0]
            scores, formula = scores + mine, formula + " + bias (−inf: not seen)"
        trace.add(part, f"{name}: scores", formula, scores, rows, seen)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        weights = weights / weights.sum(-1, keepdim=True)
        trace.add(part, f"{name}: weights", "softmax: exp(score) / Σ exp(score)", weights, rows, seen)
        results.append(trace.add(part, f"{name}: result", "weights · v", weights @ v[shared], rows))
    joined = trace.add(part, "heads side by side", "[head 1, head 2, …]", torch.cat(results, -1), rows)
    return trace.add(part, "heads mixed", "[…] W_o", _linear(out, joined), rows)


def _feed_forward(trace: Trace, part: str, layer: nn.Module, x: Tensor, rows: list[str]) -> Tensor:
    if isinstance(layer, FeedForward):
        up = trace.add(part, "feed-forward: inner", "x W_1 (+ b_1)", _linear(layer.up, x), rows)
        active = trace.add(part, "feed-forward: active", layer.activation, _active(up, layer.activation), rows)
        return trace.add(part, "feed-forward", "… W_2 (+ b_2)", _linear(layer.down, active), rows)
    assert isinstance(layer, Experts)
    scores = _linear(layer.router, x)
    names = [f"expert {i + 1}" for i in range(len(layer.experts))]
    trace.add(part, "router", "x W_r", scores, rows, names)
    best, chosen = scores.topk(layer.per_token, dim=-1)
    weights = torch.zeros_like(scores).scatter(1, chosen, best.softmax(-1))
    trace.add(part, "share of each expert", "softmax over the best", weights, rows, names)
    parts = []
    for expert in layer.experts:
        assert isinstance(expert, FeedForward)
        parts.append(_linear(expert.down, _active(_linear(expert.up, x), expert.activation)))
    y = sum(weights[:, i : i + 1] * each for i, each in enumerate(parts))
    assert isinstance(y, Tensor)
    return trace.add(part, "feed-forward", "Σ share · expert", y, rows)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    y = x @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


def _active(x: Tensor, name: str) -> Tensor:
    gate, value = x.chunk(2, dim=-1) if name in ("swiglu", "geglu") else (x, None)
    if name in ("relu", "relu_squared"):
        y = gate.clamp(min=0) ** (2 if name == "relu_squared" else 1)
    elif name == "swiglu":
        y = gate / (1 + torch.exp(-gate))
    elif name == "gelu":
        y = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    else:
        y = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return y if value is None else y * value


def _unit(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    x = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return x if weight is None else x * weight.double()


def _sinusoidal(tokens: int, width: int) -> Tensor:
    angles = torch.arange(tokens).double()[:, None] / 10_000 ** (torch.arange(0, width, 2).double() / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def _rotated(x: Tensor, base: float) -> Tensor:
    """Halves of a head as the two sides of planes, each turned by place · base^(−2i/D) (Su et al. 2104.09864)."""
    width = x.shape[-1]
    angles = torch.arange(x.shape[-2]).double()[:, None] * base ** (-torch.arange(0, width, 2).double() / width)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def bodies(model: nn.Module) -> list[tuple[str, Body]]:
    """(name for people, body) of each part of a model; empty where it is no Transformer of ours."""
    if isinstance(model, EncoderDecoder):
        return [("encoder", model.encoder), ("decoder", model.decoder)]
    body = model if isinstance(model, Body) else getattr(model, "body", None)
    return [("model", body)] if isinstance(body, Body) else []

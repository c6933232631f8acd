"""What one micro-batch costs, counted from the model's shape: weights, products, bytes moved, bytes kept for backward.

Letters as in models/layers.py: C width, H query heads, G key and value heads, D head width, F inner width, V vocabulary,
T context, n tokens of this rank's part of a micro-batch.
"""

from __future__ import annotations

from typing import NamedTuple

from zenspeed.config import InputError
from zenspeed.models.presets import ModelConfig
from zenspeed.plan.layout import Layout


class Product(NamedTuple):
    """`repeats` matrix products (m, k) × (k, n). `attention`: scores or their sum over values, inside the fused kernel."""

    m: float
    k: float
    n: float
    repeats: float = 1.0
    attention: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.repeats


class Shape:
    """A decoder's (or encoder's) dimensions and what follows from them."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        if config.architecture not in ("decoder", "encoder"):
            raise InputError(f"plan: reckons decoders and encoders, not model.architecture={config.architecture}")
        self.config, self.vocab = config, vocab_size
        self.width, self.inner, self.layers, self.context = config.width, config.inner_width, config.layers, config.context
        self.heads, self.kv_heads, self.head = config.heads, config.num_kv_heads, config.head_width
        self.ups = 2 if config.gated else 1
        self.causal = config.architecture == "decoder"

    @property
    def block_weights(self) -> int:
        """Of one block."""
        c, bias = self.width, self.config.bias
        qkv = (self.heads + 2 * self.kv_heads) * self.head
        out, up, down = self.heads * self.head * c, self.ups * c * self.inner, self.inner * c
        biases = (qkv + c + self.ups * self.inner + c) if bias else 0
        norms = {"pre": 2, "post": 2, "rezero": 0}[self.config.norm_placement]
        norm = c * (2 if bias and self.config.norm == "layernorm" else 1)
        experts = max(1, self.config.experts)
        small = 2 * self.head * self.config.qk_norm_weights + (self.config.norm_placement == "rezero")
        return c * qkv + out + experts * (up + down) + (c * experts if experts > 1 else 0) + biases + norms * norm + small

    @property
    def embedding_weights(self) -> int:
        """Of tokens, positions and n-grams."""
        learned = self.context if self.config.position == "learned" else 0
        return (self.vocab + learned + len(self.config.ngrams) * self.config.ngram_rows) * self.width

    @property
    def head_weights(self) -> int:
        return 0 if self.config.tie_embeddings else self.vocab * self.width

    @property
    def weights(self) -> int:
        """All of them."""
        norm = self.width * (2 if self.config.bias and self.config.norm == "layernorm" else 1)
        last = norm if self.config.norm_placement == "pre" else 0
        return self.layers * self.block_weights + self.embedding_weights + self.head_weights + last

    def flops_per_token(self) -> float:
        """Of forward and backward, as models/transformer.py counts: all T² scores, backward twice the forward."""
        block = sum(p.flops for p in self.block_products(1.0, 1, fused=False))
        return 3 * (self.layers * block + 2.0 * self.vocab * self.width)

    def block_products(self, tokens: float, tensor: int, *, fused: bool) -> list[Product]:
        """Forward products of one block over `tokens` tokens on one of `tensor` ranks. `fused`: the causal half is skipped."""
        c, f, width = self.width, self.inner / tensor, self.heads * self.head / tensor
        reach = min(self.context, self.config.window or self.context)
        seen = reach * (0.5 if fused and self.causal and reach == self.context else 1.0)
        active = self.config.experts_per_token if self.config.experts else 1
        return [
            Product(tokens, c, (self.heads + 2 * self.kv_heads) * self.head / tensor),
            Product(tokens, self.head, seen, self.heads / tensor, attention=True),
            Product(tokens, seen, self.head, self.heads / tensor, attention=True),
            Product(tokens, width, c),
            Product(tokens, c, self.ups * f, active),
            Product(tokens, f, c, active),
        ]

    def block_traffic(self, tokens: float, layout: Layout, *, fused: bool) -> float:
        """Bytes that norms, sums, rotary embedding and activation move in a forward over `tokens` tokens of one rank.

        Each kernel reads its inputs and writes its output once: a compiler fuses a norm with the sum before it, rotary
        embedding with nothing, the activation with its gate; without one every operation is a kernel of its own.
        """
        t = layout.tensor
        between = self.width / (t if layout.sequence_parallel else 1)
        attention = (self.heads + self.kv_heads) * self.head / t
        inner = self.inner / t
        passes = (
            2 * 4 * between + 2 * attention + (self.ups + 1) * inner
            if layout.compiled
            else 2 * 12 * between + 8 * attention + (2 * self.ups + 2) * inner
        )
        # Softmax and dropout over scores that exist: two passes each.
        scores = 0.0 if fused else 4 * self.heads / t * self.context
        return 2.0 * tokens * (passes + scores)

    def kept_bytes(self, tokens: float, layout: Layout, *, fused: bool) -> float:
        """Bytes that one block keeps for its backward, products in two bytes (Korthikanti et al. 2205.05198, section 4).

        Args:
            fused: attention keeps no scores. Else probabilities stay, T a head and token.
        """
        t = layout.tensor
        between = self.width / (t if layout.sequence_parallel else 1)
        if layout.recompute == "full":
            return 2.0 * tokens * between
        query, key = self.heads * self.head / t, self.kv_heads * self.head / t
        inner = self.inner / t
        if layout.recompute == "selective":
            # Input of the block, attention's output, and the products that are not computed again: queries, values, gate, sum.
            return 2.0 * tokens * (between + query + query + key + inner * self.ups / 2 + between)
        scores = 0.0 if fused else self.heads / t * self.context
        dropout = 0.5 * 2 * between if self.config.dropout else 0.0
        up = (self.ups + (2 if self.config.gated else 1)) * inner
        # What products cut by columns take in is gathered, and torch keeps it so for the weights' gradients; asynchronous
        # tensor parallelism, which gathers in pieces, does not.
        taken = between if layout.overlapped_tensor else self.width
        # Two norms' inputs and outputs, queries, keys and values, attention's output, the inner products.
        return 2.0 * tokens * (2 * between + 2 * taken + query + 2 * key + query + up + scores + dropout)

    def logit_bytes(self, tokens: float, layout: Layout, *, chunked: bool) -> float:
        """Bytes that logits take at their peak; none to speak of where the loss is made in chunks.

        In two bytes, as fp32 probabilities, their gradient in fp32 (and, when nothing is fused, a copy of it in two bytes);
        a loss spread over tensor-parallel ranks holds logits and probabilities in fp32 side by side.
        """
        if chunked:
            return 0.0
        if layout.fused_loss:
            return 4.0 * tokens * self.vocab / layout.tensor
        copies = 16 if layout.tensor > 1 else 10 if layout.compiled else 12
        return float(tokens) * self.vocab / layout.tensor * copies

"""An encoder's blocks through encoder.cpp, in the place of the trained model's body; its head stays torch's."""

from __future__ import annotations

import copy
import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.models.build import Model
from zenspeed.models.layers import Block, FeedForward, Norm
from zenspeed.models.layers import Linear as LinearLayer
from zenspeed.models.transformer import Body
from zenspeed.ops.activation import ACTIVATIONS
from zenspeed.ops.position import positions_in_documents, sinusoidal
from zenspeed.serve.compiled import processor_has

SOURCE = "encoder.cpp"
PANEL = 16
"""Outputs of a linear layer that lie together; what is no multiple of it is left to torch."""


class _Linear(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("inputs", c_int32), ("panels", c_int32)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        ("qkv", _Linear), ("out", _Linear), ("up", _Linear), ("down", _Linear), ("attention", _Norm), ("feed_forward", _Norm),
    ]  # fmt: skip


class _Encoder(Structure):
    _fields_ = [
        *((name, c_int32) for name in (
            "layers", "width", "heads", "kv_heads", "head_width", "inner", "bf16", "layernorm", "activation", "pre",
        )),
        ("epsilon", c_float), ("attention_scale", c_float), ("layer", POINTER(_Layer)),
    ]  # fmt: skip


def obstacle(model: nn.Module, weights: Literal["fp32", "bf16"]) -> str | None:
    """Why the kernel cannot run the body of `model`, or would be slower than torch; None: it can."""
    if not processor_has("avx512f" if weights == "fp32" else "avx512_bf16"):
        return "the processor has no AVX-512" + (" for bf16" if weights == "bf16" else "")
    if weights == "bf16" and processor_has("amx_bf16"):
        return "the processor has tiles for bf16, which torch uses"
    if not isinstance(model, Model) or not isinstance(model.body, Body):
        return f"{type(model).__name__} is no encoder of ours"
    config = model.config
    for name, found, wanted in (
        ("architecture", config.architecture, ("encoder",)),
        ("position", config.position, ("learned", "sinusoidal", "none")),
        ("norm_placement", config.norm_placement, ("pre", "post")),
        ("activation", config.activation, ("gelu", "gelu_tanh", "relu", "relu_squared")),
        ("experts", config.experts, (0,)),
        ("qk_norm", config.qk_norm, (False,)),
        ("window", config.window, (None,)),
        ("ngrams", config.ngrams, ((),)),
    ):
        if found not in wanted:
            return f"{name} {found!r}"
    sizes = {"width": config.width, "feed_forward": config.inner_width, "a head's width": config.head_width}
    return next((f"{name} {size}" for name, size in sizes.items() if size % PANEL), None)


def with_kernel(model: nn.Module, library: Path, weights: Literal["fp32", "bf16"]) -> nn.Module:
    """A model that answers as `model`, its blocks in the compiled `library`; for a `model` without an obstacle."""
    assert isinstance(model, Model)
    assert isinstance(model.body, Body)
    body: Any = EncoderBody(model.body, library, weights)
    served = copy.copy(model)
    served._modules = dict(model._modules) | {"body": body}
    return served


class EncoderBody(nn.Module):
    """`Body` of texts that are known whole: `hidden_states` alone."""

    def __init__(self, trained: Body, library: Path, weights: Literal["fp32", "bf16"]) -> None:
        super().__init__()
        self.config, self._bf16 = trained.config, weights == "bf16"
        self.embedding, self.position, self.token_types = trained.embedding, trained.position, trained.token_types
        self.embedding_norm, self.norm = trained.embedding_norm, trained.norm
        self._kept: list[Tensor] = []  # what the kernel reads
        config = self.config
        blocks: Any = trained.blocks
        self._layers = (_Layer * trained.layers)(*(self._layer(block) for block in blocks))
        scale = config.head_width**-0.5 if config.scale_attention else 1.0
        self._layout = _Encoder(
            trained.layers, config.width, config.heads, config.num_kv_heads, config.head_width, config.inner_width,
            int(self._bf16), int(config.norm == "layernorm"), ACTIVATIONS.index(config.activation),
            int(config.norm_placement == "pre"), config.norm_epsilon, scale, self._layers,
        )  # fmt: skip
        self._encode = ctypes.CDLL(str(library)).encode
        self._encode.argtypes = [POINTER(_Encoder), c_void_p, c_void_p, c_int32]
        self._encode.restype = None

    @torch.no_grad()
    def hidden_states(
        self, tokens: Tensor, documents: Tensor | None = None, token_types: Tensor | None = None, balance: None = None
    ) -> Tensor:
        """(B, T, C), as `Body.hidden_states`; fp32."""
        if documents is None:
            documents = torch.zeros_like(tokens)
        with torch.autocast("cpu", enabled=False):
            x = self._embed(tokens, documents, token_types)
            starts = _starts(documents)
            self._encode(ctypes.byref(self._layout), x.data_ptr(), starts.ctypes.data, len(starts) - 1)
            return x if self.norm is None else self.norm(x)

    def _embed(self, tokens: Tensor, documents: Tensor, token_types: Tensor | None) -> Tensor:
        x: Tensor = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = x * self.config.width**0.5
        positions = positions_in_documents(documents)
        if self.position is not None:
            x = x + self.position(positions)
        elif self.config.position == "sinusoidal":
            x = x + sinusoidal(positions, self.config.width)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        return (x if self.embedding_norm is None else self.embedding_norm(x)).float().contiguous()

    # Layout -----------------------------------------------------------------------------------------------------------

    def _layer(self, block: Block) -> _Layer:
        attention, feed = block.attention, block.feed_forward
        assert isinstance(feed, FeedForward)
        assert block.attention_norm is not None
        assert block.feed_forward_norm is not None
        products = (self._linear(layer) for layer in (attention.qkv, attention.out, feed.up, feed.down))
        return _Layer(*products, self._norm(block.attention_norm), self._norm(block.feed_forward_norm))

    def _linear(self, layer: LinearLayer) -> _Linear:
        outputs, inputs = layer.weight.shape
        panels = layer.weight.detach().float().view(outputs // PANEL, PANEL, inputs)
        terms = 2 if self._bf16 else 1  # inputs of an output that lie side by side
        panels = panels.unflatten(2, (inputs // terms, terms)).permute(0, 2, 1, 3)
        panels = panels.bfloat16() if self._bf16 else panels
        bias = None if layer.bias is None else self._keep(layer.bias.detach().float())
        return _Linear(self._keep(panels), bias, inputs, outputs // PANEL)

    def _norm(self, norm: Norm) -> _Norm:
        bias = None if norm.bias is None else self._keep(norm.bias.detach().float())
        return _Norm(self._keep(norm.weight.detach().float()), bias)

    def _keep(self, values: Tensor) -> int:
        self._kept.append(values.clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()


def _starts(documents: Tensor) -> np.ndarray:
    """(N + 1) where runs of one number begin in the rows of `documents` (B, T), end to end, and where the last one ends."""
    numbers = documents.numpy()
    begins = np.ones(numbers.shape, bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return np.append(np.flatnonzero(begins), numbers.size).astype(np.int32)

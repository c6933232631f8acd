"""A decoder through kernel.cpp: compiled once with the machine's C++ compiler, called through ctypes.

Until it is compiled, and where there is no compiler, plain.py serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.models.layers import Block, FeedForward
from zenspeed.models.layers import Linear as LinearLayer
from zenspeed.models.transformer import Transformer
from zenspeed.ops.activation import ACTIVATIONS
from zenspeed.ops.ngram import last_ngram_rows
from zenspeed.ops.position import alibi_bias, rotary_tables, sinusoidal
from zenspeed.serve.core import Feed
from zenspeed.serve.pages import PAGE, PagePool

SOURCE = "kernel.cpp"
WeightType = Literal["fp32", "bf16", "int8"]
_KINDS: dict[WeightType, int] = {"fp32": 0, "bf16": 1, "int8": 2}


class Linear(Structure):
    _fields_ = [("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p), ("inputs", c_int32), ("panels", c_int32)]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(Structure):
    _fields_ = [
        ("qkv", Linear), ("out", Linear), ("up", Linear), ("down", Linear), ("attention", Norm), ("feed_forward", Norm),
        ("q_norm", c_void_p), ("k_norm", c_void_p),
    ]  # fmt: skip


class Model(Structure):
    _fields_ = [
        *((name, c_int32) for name in (
            "layers", "width", "heads", "kv_heads", "head_width", "inner", "vocab", "context", "max_rows", "threads",
            "weights", "cache", "layernorm", "activation", "qk_norm", "window",
        )),
        ("epsilon", c_float), ("attention_scale", c_float), ("softcap", c_float),
        ("cosines", c_void_p), ("sines", c_void_p), ("slopes", c_void_p), ("layer", POINTER(Layer)),
        ("norm", Norm), ("head", Linear), ("keys", c_void_p), ("values", c_void_p), ("pages", c_int64),
    ]  # fmt: skip


class Step(Structure):
    _fields_ = [
        ("rows", c_int32), ("wanted", c_int32), ("x", c_void_p), ("position", c_void_p), ("table", c_void_p),
        ("pages", c_void_p), ("want", c_void_p), ("logits", c_void_p),
    ]  # fmt: skip


def obstacle(model: nn.Module) -> str | None:
    """Why the kernel cannot run `model`; None: it can."""
    if not isinstance(model, Transformer):
        return f"{type(model).__name__} is no decoder of ours"
    config = model.config
    for name, found, wanted in (
        ("norm_placement", config.norm_placement, ("pre",)),
        ("position", config.position, ("rotary", "learned", "sinusoidal", "alibi", "none")),
        ("experts", config.experts, (0,)),
        ("base_width", config.base_width, (None,)),
    ):
        if found not in wanted:
            return f"{name} {found!r}"
    return None


class NativeStream:
    """A sequence and its pages."""

    def __init__(self, tokens: Sequence[int], pages: list[int], names: list[bytes], num_read: int) -> None:
        self.tokens = list(tokens)
        self.num_read = num_read
        self.pages, self.names = pages, names
        self.table = np.array(pages, dtype=np.int32)


class NativeCore:
    """`Core` over a decoder; the weights are copied into the kernel's layout, `model` may go afterwards.

    Args:
        library: of `build`.
        max_tokens: tokens in all sequences together that there is room for.
        weights: fp32, bf16, or int8 with a scale for each row; keys and values are fp32 with fp32 weights, else bf16.
        max_rows: tokens of a step.
    """

    def __init__(
        self, model: nn.Module, library: Path, *, max_tokens: int, weights: WeightType = "fp32", max_rows: int = 96,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        assert isinstance(model, Transformer)
        assert obstacle(model) is None
        config = self._config = model.config
        self.vocab_size, self.context, self.max_rows = model.vocab_size, config.context, max_rows
        self.whole_prompts = False
        self.kind = f"kernel, {weights}"
        self._kept: list[Any] = []
        self._arena = _Arena()
        self._weights: WeightType = weights
        pages = max(1, -(-max_tokens // PAGE))
        self.pool = PagePool(pages)
        with torch.no_grad():
            self._embedding = self._table(model.embedding.weight * (config.width**0.5 if config.scale_embeddings else 1))
            layout = self._model(model, pages, threads or torch.get_num_threads())
        self._library = ctypes.CDLL(str(library))
        self._library.open_model.restype = c_void_p
        self._library.run_step.argtypes = [c_void_p, POINTER(Step)]
        self._library.close_model.argtypes = [c_void_p]
        self._engine: int | None = self._library.open_model(ctypes.byref(layout))
        self._x = np.empty((max_rows, config.width), np.float32)
        self._logits = np.empty((max_rows, self.vocab_size), np.float32)

    def shut(self) -> None:
        """Ends the kernel's threads."""
        if self._engine is not None:
            self._library.close_model(self._engine)
            self._engine = None

    # Sequences --------------------------------------------------------------------------------------------------------

    def fits(self, total: int) -> bool:
        return -(-total // PAGE) <= self.pool.count

    def room(self) -> tuple[int, int]:
        return self.pool.count * PAGE, self.pool.available * PAGE

    def open(self, tokens: Sequence[int], total: int) -> NativeStream | None:
        shared, names = self.pool.find(tokens)
        pages = self.pool.take(shared, -(-total // PAGE) - len(shared))
        return None if pages is None else NativeStream(tokens, pages, names, len(shared) * PAGE)

    def close(self, stream: Any) -> None:
        self.pool.give_back(stream.pages)
        stream.pages = []

    def step(self, feeds: Sequence[Feed]) -> np.ndarray:
        tokens: list[int] = []
        positions, tables, pages, want = [], [], [], []
        length = 0
        for stream, count, wanted in feeds:
            assert isinstance(stream, NativeStream)
            start = stream.num_read
            tokens += stream.tokens[start : start + count]
            positions.append(np.arange(start, start + count, dtype=np.int32))
            tables.append(np.full(count, length, np.int32))
            pages.append(stream.table)
            length += len(stream.table)
            if wanted:
                want.append(len(tokens) - 1)
        rows = len(tokens)
        assert rows <= self.max_rows, f"{rows} tokens in a step of {self.max_rows}"
        position, table, page = (np.concatenate(parts) for parts in (positions, tables, pages))
        wants = np.array(want, np.int32)
        np.take(self._embedding, tokens, axis=0, out=self._x[:rows], mode="clip")
        if self._positions is not None:
            self._x[:rows] += self._positions[position]
        if self._ngrams is not None:
            self._add_ngrams(feeds, position)
        if self._embedding_norm is not None:
            with torch.inference_mode():
                self._x[:rows] = self._embedding_norm(torch.from_numpy(self._x[:rows])).numpy()
        call = Step(
            rows, len(want), self._x.ctypes.data, position.ctypes.data, table.ctypes.data, page.ctypes.data,
            wants.ctypes.data, self._logits.ctypes.data,
        )  # fmt: skip
        assert self._engine is not None
        self._library.run_step(self._engine, ctypes.byref(call))
        for stream, count, _ in feeds:
            self._read(stream, count)
        return self._logits[: len(want)]

    def _add_ngrams(self, feeds: Sequence[Feed], position: np.ndarray) -> None:
        assert self._ngrams is not None
        orders, reach = self._config.ngrams, max(self._config.ngrams) - 1
        windows = np.zeros((len(position), reach + 1), np.int64)
        row = 0
        for stream, num, _ in feeds:
            start = stream.num_read
            seen = np.zeros(num + reach, np.int64)
            before = stream.tokens[max(0, start - reach) : start + num]
            seen[len(seen) - len(before) :] = before
            windows[row : row + num] = np.lib.stride_tricks.sliding_window_view(seen, reach + 1)
            row += num
        for i, (order, rows) in enumerate(zip(orders, last_ngram_rows(windows, orders, self._config.ngram_rows), strict=True)):
            found = self._ngrams[rows + i * self._config.ngram_rows]
            self._x[: len(position)] += found * (position >= order - 1)[:, None]

    def _read(self, stream: Any, count: int) -> None:
        """Counts tokens as read, and gives names to pages that they have filled."""
        before, stream.num_read = stream.num_read, stream.num_read + count
        for page in range(before // PAGE, stream.num_read // PAGE):
            if page < len(stream.names):  # of the prompt; what is generated is seldom another's beginning
                self.pool.name(stream.pages[page], stream.names[page])

    # Layout -----------------------------------------------------------------------------------------------------------

    def _model(self, model: Transformer, pages: int, threads: int) -> Model:
        config = model.config
        D, Dp, G, L = config.head_width, _up16(config.head_width), config.num_kv_heads, config.layers
        layers = (Layer * L)(*(self._layer(block) for block in model.blocks))  # type: ignore[arg-type]
        kind = np.float32 if self._weights == "fp32" else np.uint16
        keys, values = np.zeros((L, pages, G, D, PAGE), kind), np.zeros((L, pages, G, PAGE, Dp), kind)
        self._kept += [layers, keys, values]
        cosines = sines = slopes = None
        if config.position == "rotary":
            cos, sin = rotary_tables(torch.arange(self.context), D, config.rotary_base, torch.float32)
            cosines, sines = self._pointer(cos[:, : D // 2]), self._pointer(-sin[:, : D // 2])
        if config.position == "alibi":
            one = torch.zeros(1)
            slopes = self._pointer(alibi_bias(config.heads, one, one + 1).flatten().neg())
        self._positions = self._embedding_norm = None
        self._ngrams = None if model.ngrams is None else model.ngrams.weight.detach().float().numpy()
        if model.position is not None:
            self._positions = model.position.weight.detach().float().numpy()
        elif config.position == "sinusoidal":
            self._positions = sinusoidal(torch.arange(self.context), config.width).numpy()
        if model.token_types is not None:
            self._embedding = self._embedding + model.token_types.weight[0].detach().float().numpy()
        self._embedding_norm = model.embedding_norm
        assert model.norm is not None
        return Model(
            L, config.width, config.heads, G, D, config.inner_width, self.vocab_size, self.context, self.max_rows, threads,
            _KINDS[self._weights], int(self._weights != "fp32"), int(config.norm == "layernorm"),
            ACTIVATIONS.index(config.activation), int(config.qk_norm), config.window or 0,
            config.norm_epsilon, D**-0.5 if config.scale_attention else 1.0, config.logit_softcap or 0.0,
            cosines, sines, slopes, layers, self._norm(model.norm), self._linear(model.head_weight, None),
            keys.ctypes.data, values.ctypes.data, pages,
        )  # fmt: skip

    def _layer(self, block: Block) -> Layer:
        config, attention, feed = self._config, block.attention, block.feed_forward
        assert isinstance(feed, FeedForward)
        D, Dp = config.head_width, _up16(config.head_width)
        rows = torch.full((config.heads + 2 * config.num_kv_heads, Dp), -1)
        rows[:, :D] = torch.arange(len(attention.qkv.weight)).view(-1, D)
        up, inner = feed.up, config.inner_width
        columns = torch.full((_up16(inner),), -1)
        columns[:inner] = torch.arange(inner)
        if config.gated:  # a panel of the gate, a panel of what it gates, in turn
            gated = torch.where(columns < 0, -1, columns + inner)
            columns = torch.stack([columns.view(-1, 16), gated.view(-1, 16)], 1)
        q_norm, k_norm = (None if w is None else self._pointer(w) for w in (attention.q_norm, attention.k_norm))
        qkv = self._linear(attention.qkv.weight, attention.qkv.bias, rows.flatten(), Dp // 16)
        return Layer(
            qkv, self._of(attention.out), self._of(up, columns.flatten()), self._of(feed.down),
            self._norm(block.attention_norm), self._norm(block.feed_forward_norm), q_norm, k_norm,
        )  # fmt: skip

    def _of(self, layer: LinearLayer, rows: Tensor | None = None) -> Linear:
        return self._linear(layer.weight, layer.bias, rows)

    def _linear(self, weight: Tensor, bias: Tensor | None, rows: Tensor | None = None, block: int | None = None) -> Linear:
        """`rows`: which row of the weight each output of the panels is, −1 for none. `block`: panels of a block; null: all."""
        weight = weight.detach().float()
        if rows is None:
            rows = torch.full((_up16(len(weight)),), -1)
            rows[: len(weight)] = torch.arange(len(weight))
        there = (rows >= 0).unsqueeze(1)
        weight = weight[rows.clamp(min=0)] * there
        scale = None
        if self._weights == "int8":
            size = weight.abs().amax(1).clamp(min=1e-12) / 127
            weight, scale = (weight / size.unsqueeze(1)).round().to(torch.int8), self._pointer(size)
        elif self._weights == "bf16":
            weight = weight.bfloat16().view(torch.int16)
        panels = weight.view(-1, 16, weight.shape[1]).transpose(1, 2)  # (panels, K, 16)
        placed = _in_groups(panels.unflatten(0, (-1, block or len(panels))))
        added = None if bias is None else self._pointer(bias.detach().float()[rows.clamp(min=0)] * there[:, 0])
        return Linear(self._keep(self._arena.put(placed)), scale, added, weight.shape[1], len(panels))

    def _norm(self, norm: Any) -> Norm:
        return Norm(self._pointer(norm.weight), None if norm.bias is None else self._pointer(norm.bias))

    def _table(self, weight: Tensor) -> np.ndarray:
        return weight.detach().to(torch.bfloat16 if self._weights != "fp32" else torch.float32).float().numpy()

    def _pointer(self, values: Tensor) -> int:
        return self._keep(values.detach().float().contiguous().numpy().copy())

    def _keep(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return array.ctypes.data


class _Arena:
    """Memory in pages of 2 MB, where the system has them: a step of one row reads all of it, and sooner than in small pages."""

    _BLOCK = 32 * 2**20

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._used = self._size = 0

    def put(self, values: Tensor) -> np.ndarray:
        """A copy of `values`."""
        array = values.contiguous().numpy()
        if self._memory is None or self._used + array.nbytes > self._size:
            self._size = max(self._BLOCK, -(-array.nbytes // self._BLOCK) * self._BLOCK)
            self._memory, self._used = mmap.mmap(-1, self._size), 0
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):
                    self._memory.madvise(mmap.MADV_HUGEPAGE)
        place: np.ndarray = np.frombuffer(self._memory, array.dtype, array.size, self._used)
        place[:] = array.ravel()
        self._used += -(-array.nbytes // 64) * 64
        return place


def _in_groups(panels: Tensor) -> Tensor:
    """(blocks, panels, K, 16) -> (blocks, …): of each block fours as [K][4][16], then single ones."""
    num = panels.shape[1] // 4
    fours = panels[:, : 4 * num].unflatten(1, (num, 4)).transpose(2, 3)
    return torch.cat([fours.flatten(1), panels[:, 4 * num :].flatten(1)], 1)


def _up16(number: int) -> int:
    return -(-number // 16) * 16

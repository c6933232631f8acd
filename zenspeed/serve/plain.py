"""Any language model as a `Core`: one sequence after the other, each with a cache of its own.

For what the kernel cannot run, and until the kernel is built. Slower, and the answers are those of `zenspeed generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zenspeed.models.auto import AutoTransformer
from zenspeed.serve.core import Feed


class PlainStream:
    """A sequence and its cache."""

    def __init__(self, tokens: Sequence[int], cache: Any, total: int) -> None:
        self.tokens, self.num_read = list(tokens), 0
        self.cache, self.total = cache, total


class PlainCore:
    """`Core` over a model with `hidden_states` and `logits`, or over one of transformers.

    Args:
        max_tokens: tokens in all sequences together.
    """

    def __init__(self, model: Any, *, max_tokens: int, max_rows: int = 96) -> None:
        self._model = model
        self.vocab_size: int = self._model.vocab_size
        self.context: int = self._model.config.context
        self.max_rows, self.whole_prompts = max_rows, True
        self.kind = "plain torch, one sequence after the other"
        self._max_tokens = self._free = max_tokens
        self._chunk = not isinstance(model, AutoTransformer)

    def fits(self, total: int) -> bool:
        return total <= self._max_tokens

    def room(self) -> tuple[int, int]:
        return self._max_tokens, self._free

    def open(self, tokens: Sequence[int], total: int) -> PlainStream | None:
        if total > self._free:
            return None
        self._free -= total
        cache = self._model.new_cache(1, total) if self._chunk else None
        return PlainStream(tokens, cache, total)

    def close(self, stream: Any) -> None:
        self._free += stream.total
        stream.total, stream.cache = 0, None

    @torch.inference_mode()
    def step(self, feeds: Sequence[Feed]) -> np.ndarray:
        out = []
        for stream, count, wanted in feeds:
            assert isinstance(stream, PlainStream)
            tokens = torch.tensor([stream.tokens[stream.num_read : stream.num_read + count]])
            logits = self._forward(stream, tokens, wanted)
            stream.num_read += count
            if wanted:
                assert logits is not None
                out.append(logits.float())
        return torch.stack(out).numpy() if out else np.empty((0, self.vocab_size), np.float32)

    def _forward(self, stream: PlainStream, tokens: Tensor, wanted: bool) -> Tensor | None:
        if self._chunk:
            hidden = self._model.hidden_states(tokens, cache=stream.cache)
            return self._model.logits(hidden[0, -1]) if wanted else None
        output = self._model.model(input_ids=tokens, past_key_values=stream.cache, use_cache=True)
        stream.cache = output.past_key_values
        return output.logits[0, -1]

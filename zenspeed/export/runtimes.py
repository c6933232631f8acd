"""The programs that run an exported model, behind one call, and ours beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from zenspeed.config import InputError
from zenspeed.export.graph import DecoderGraph, graph_of
from zenspeed.export.probe import Probe
from zenspeed.models.build import Model


class Runtime(Protocol):
    """Logits of one text at a time: (T, V) of a decoder, (L,) of a label head, (T, 2) of a span head, (C,) of an embedding."""

    def output(self, probe: Probe) -> np.ndarray: ...

    def greedy(self, tokens: np.ndarray, num: int) -> list[int]:
        """The likeliest continuation, through the runtime's own cache where it has one."""
        ...


def likeliest(runtime: Runtime, tokens: np.ndarray, num: int) -> list[int]:
    """Greedy tokens without a cache: the whole text again for each."""
    found: list[int] = []
    for _ in range(num):
        text = np.concatenate([tokens, np.array(found, np.int64)])
        found.append(int(runtime.output(Probe(text, None, None))[-1].argmax()))
    return found


class Own:
    """The trainer's model, as it is trained, in fp32."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def output(self, probe: Probe) -> np.ndarray:
        tokens = torch.from_numpy(probe.tokens)[None]
        types = None if probe.token_types is None else torch.from_numpy(probe.token_types)[None]
        inputs: dict[str, Any] = {"tokens": tokens} | ({} if types is None else {"token_types": types})
        return self.model(**inputs)[0].float().numpy()

    def greedy(self, tokens: np.ndarray, num: int) -> list[int]:
        return likeliest(self, tokens, num)


class _Graph(ABC):
    """A graph of tensors, whoever runs it."""

    def __init__(self, decoder: bool, past_shape: tuple[int, ...]) -> None:
        self.decoder, self._past_shape = decoder, past_shape

    @abstractmethod
    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of inputs, in the order of `graph.NAMES`."""

    def output(self, probe: Probe) -> np.ndarray:
        tokens = probe.tokens[None]
        mask = np.ones_like(tokens)
        if self.decoder:
            return self.run(tokens, _behind_nothing(mask.shape[1]), np.zeros(self._past_shape, np.float32))[0][0]
        types = np.zeros_like(tokens) if probe.token_types is None else probe.token_types[None]
        return self.run(tokens, mask, types)[0][0]

    def greedy(self, tokens: np.ndarray, num: int) -> list[int]:
        found: list[int] = []
        new, past = tokens[None], np.zeros(self._past_shape, np.float32)
        for _ in range(num):
            mask = _behind_nothing(past.shape[4] - 1 + new.shape[1])
            logits, past = self.run(new, mask, past)
            found.append(int(logits[0, -1].argmax()))
            new = np.array([[found[-1]]], np.int64)
        return found


def _behind_nothing(num: int) -> np.ndarray:
    """The mask of `num` tokens behind the one place that an empty past has."""
    return np.array([[0] + [1] * num], np.int64)


def past_shape(model: nn.Module) -> tuple[int, ...]:
    """Of an empty past of one sequence, (L, 2, 1, G, 1, D): one place, that the mask takes away."""
    config: Any = model.config
    return (config.layers, 2, 1, config.num_kv_heads, 1, config.head_width)


class Onnx(_Graph):
    """onnxruntime on the CPU."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        import onnxruntime

        super().__init__(not isinstance(model, Model), past_shape(model))
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names = [i.name for i in self._session.get_inputs()]

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        named = dict(zip(("tokens", "mask", "past" if self.decoder else "token_types"), inputs, strict=True))
        return self._session.run(None, {name: named[name] for name in self._names})


class Program(_Graph):
    """A program of torch.export, loaded from its file."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        super().__init__(isinstance(graph_of(model), DecoderGraph), past_shape(model))
        self._module = torch.export.load(path).module(check_guards=False)

    @torch.no_grad()
    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        found = self._module(*map(torch.from_numpy, inputs))
        return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


CLASSES = {
    "language_model": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM", "span_qa": "AutoModelForQuestionAnswering", "similarity": "AutoModel",
}  # fmt: skip
"""The class of transformers for a run of a task."""


class Transformers:
    """The package `transformers`, in fp32."""

    def __init__(self, folder: Path, kind: str, pool: str) -> None:
        import transformers

        if kind not in CLASSES:
            raise InputError(f"export: no class of transformers for a run of {kind}")
        self._kind, self._pool = kind, pool
        self._model = getattr(transformers, CLASSES[kind]).from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def output(self, probe: Probe) -> np.ndarray:
        inputs = {"input_ids": torch.from_numpy(probe.tokens)[None]}
        if probe.token_types is not None:
            inputs["token_type_ids"] = torch.from_numpy(probe.token_types)[None]
        found = self._model(**inputs)
        if self._kind == "span_qa":
            return torch.stack([found.start_logits, found.end_logits], -1)[0].numpy()
        if self._kind == "similarity":
            hidden = found.last_hidden_state[0]
            pooled = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[self._pool]
            return torch.nn.functional.normalize(pooled, dim=0).numpy()
        return found.logits[0].numpy()

    @torch.inference_mode()
    def greedy(self, tokens: np.ndarray, num: int) -> list[int]:
        text = torch.from_numpy(tokens)[None]
        # The mask is given, for a mask that is guessed leaves out what is equal to the padding; nothing ends the text.
        found = self._model.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=num, min_new_tokens=num, do_sample=False, pad_token_id=0
        )
        return found[0, len(tokens) :].tolist()

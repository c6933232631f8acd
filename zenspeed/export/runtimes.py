"""The programs that run an exported model, behind one call, and ours beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zenspeed.export.graph import NAMES, EncoderGraph, graphs_of
from zenspeed.export.probe import Probe
from zenspeed.models.encoder_decoder import EncoderDecoder


class Runtime(ABC):
    """Logits of one text at a time: (T, V) of a decoder, (L,) of a label head, (T, 2) of a span head, (C,) of an embedding."""

    @abstractmethod
    def output(self, probe: Probe) -> np.ndarray: ...

    @abstractmethod
    def greedy(self, probe: Probe, num: int) -> list[int]:
        """The likeliest continuation of its tokens, through the runtime's own cache where it has one."""

    def first_layer(self, own: Own, probe: Probe, tolerance: float) -> str | None:
        """What is the first to differ from the trained model's by more than `tolerance` of its largest number; None: the
        runtime shows nothing but its answers."""
        return None


class Own(Runtime):
    """The trainer's model, as it is trained, in fp32."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def output(self, probe: Probe) -> np.ndarray:
        tokens = torch.from_numpy(probe.tokens)[None]
        types = None if probe.token_types is None else torch.from_numpy(probe.token_types)[None]
        source = None if probe.source is None else torch.from_numpy(probe.source)[None]
        inputs: dict[str, Any] = {"tokens": tokens, "token_types": types, "source": source}
        return self.model(**{name: value for name, value in inputs.items() if value is not None})[0].float().numpy()

    def greedy(self, probe: Probe, num: int) -> list[int]:
        """Without a cache: the whole text again for each token."""
        found: list[int] = []
        for _ in range(num):
            text = np.concatenate([probe.tokens, np.array(found, np.int64)])
            found.append(int(self.output(probe._replace(tokens=text))[-1].argmax()))
        return found

    def layers(self, probe: Probe) -> dict[str, list[np.ndarray]]:
        """(T, C) behind each layer, of the one stack of layers or of the encoder's and the decoder's."""
        model: Any = getattr(self.model, "body", self.model)
        stacks = {"": model} if hasattr(model, "blocks") else {}
        if isinstance(model, EncoderDecoder):
            stacks = {"encoder ": model.encoder, "decoder ": model.decoder}
        found: dict[str, list[np.ndarray]] = {name: [] for name in stacks}
        hooks = [
            block.register_forward_hook(lambda block, given, x, kept=found[name]: kept.append(x[0].float().numpy()))
            for name, stack in stacks.items()
            for block in stack.blocks
        ]
        try:
            self.output(probe)
        finally:
            for hook in hooks:
                hook.remove()
        return found


class _Graphs(Runtime):
    """Graphs of tensors, whoever runs them."""

    def __init__(self, model: nn.Module) -> None:
        self.graphs = graphs_of(model)
        config: Any = model.config
        layers = config.decoder_layers if "decoder" in self.graphs and config.decoder_layers else config.layers
        # An empty past of one sequence, (L, 2, 1, G, 1, D): one place, that the mask takes away.
        self._empty = np.zeros((layers, 2, 1, config.num_kv_heads, 1, config.head_width), np.float32)

    @abstractmethod
    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of a graph for inputs by name."""

    def output(self, probe: Probe) -> np.ndarray:
        tokens = probe.tokens[None]
        if isinstance(self.graphs.get("model"), EncoderGraph):
            types = np.zeros_like(tokens) if probe.token_types is None else probe.token_types[None]
            return self.run("model", {"tokens": tokens, "mask": np.ones_like(tokens), "token_types": types})[0][0]
        part, read = self._read(probe)
        return self.run(part, {"tokens": tokens, "mask": _behind_nothing(len(probe.tokens)), "past": self._empty} | read)[0][0]

    def greedy(self, probe: Probe, num: int) -> list[int]:
        part, read = self._read(probe)
        found: list[int] = []
        new, past = probe.tokens[None], self._empty
        for _ in range(num):
            mask = _behind_nothing(past.shape[4] - 1 + new.shape[1])
            logits, past = self.run(part, {"tokens": new, "mask": mask, "past": past} | read)
            found.append(int(logits[0, -1].argmax()))
            new = np.array([[found[-1]]], np.int64)
        return found

    def first_layer(self, own: Own, probe: Probe, tolerance: float) -> str | None:
        """By the keys and values, which a graph gives out for each layer."""
        if isinstance(self.graphs.get("model"), EncoderGraph):
            return None
        part, inputs = self._read(probe)
        tokens = {"tokens": probe.tokens[None], "mask": _behind_nothing(len(probe.tokens)), "past": self._empty}
        if probe.source is not None:
            source = {"tokens": probe.source[None], "mask": np.ones_like(probe.source[None])}
            if _differ(self.run("encoder", source)[0], self._eager("encoder", source)[0], tolerance):
                return "in the encoder"
        found, wanted = self.run(part, tokens | inputs)[1], self._eager(part, tokens | inputs)[1]
        layers = (i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if _differ(a, b, tolerance))
        return _named("keys and values of layer", next(layers, None))

    @torch.no_grad()
    def _eager(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """What torch makes of the same graph."""
        found = self.graphs[part](*(torch.from_numpy(inputs[name]) for name in NAMES[type(self.graphs[part])][0]))
        return [t.numpy() for t in (found if isinstance(found, tuple | list) else (found,))]

    def _read(self, probe: Probe) -> tuple[str, dict[str, np.ndarray]]:
        """The graph that writes, and what it needs of the source."""
        if probe.source is None:
            return "model", {}
        tokens = probe.source[None]
        mask = np.ones_like(tokens)
        return "decoder", {"source_mask": mask, "memory": self.run("encoder", {"tokens": tokens, "mask": mask})[0]}


def _differ(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return not np.abs(found - wanted).max() <= tolerance * max(1.0, float(np.abs(wanted).max()))


def _named(what: str, layer: int | None) -> str:
    return "behind the last layer's attention" if layer is None else f"in the {what} {layer}"


def _behind_nothing(num: int) -> np.ndarray:
    """The mask of `num` tokens behind the one place that an empty past has."""
    return np.array([[0] + [1] * num], np.int64)


class Onnx(_Graphs):
    """onnxruntime on the CPU."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        import onnxruntime

        super().__init__(model)
        providers = ["CPUExecutionProvider"]
        self._sessions = {
            part: onnxruntime.InferenceSession(str(folder / f"{part}.onnx"), providers=providers) for part in self.graphs
        }

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        session = self._sessions[part]
        return session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})


class Programs(_Graphs):
    """Programs of torch.export, loaded from their files."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(model)
        self._modules = {part: self._load(folder / f"{part}.pt2") for part in self.graphs}

    @staticmethod
    def _load(path: Path) -> Any:
        return torch.export.load(path).module(check_guards=False)

    @torch.no_grad()
    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        names = NAMES[type(self.graphs[part])][0]
        found = self._modules[part](*(torch.from_numpy(inputs[name]) for name in names))
        return [t.numpy() for t in (found if isinstance(found, tuple | list) else (found,))]


class Compiled(Programs):
    """Programs that AOTInductor has compiled, loaded from their files."""

    @staticmethod
    def _load(path: Path) -> Any:
        return torch._inductor.aoti_load_package(str(path))


OF_GRAPHS: dict[str, type[Onnx | Programs]] = {"onnx": Onnx, "torch": Programs, "aoti": Compiled}
"""The runtime of a target that is written as graphs."""

CLASSES = {
    "language_model": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM", "span_qa": "AutoModelForQuestionAnswering", "similarity": "AutoModel",
    "chat": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM", "span_corruption": "AutoModelForSeq2SeqLM",
}  # fmt: skip
"""The class of transformers for a run of a task."""


class Transformers(Runtime):
    """The package `transformers`, in fp32."""

    def __init__(self, folder: Path, kind: str, pool: str, writes: bool) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._kind, self._pool = kind, pool
        self._model = getattr(transformers, CLASSES[kind]).from_pretrained(folder, dtype=torch.float32).eval()
        if writes:
            self._model.generation_config.eos_token_id = None  # so many tokens are asked, whatever they are

    @torch.inference_mode()
    def output(self, probe: Probe) -> np.ndarray:
        inputs = _inputs(probe)
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
    def first_layer(self, own: Own, probe: Probe, tolerance: float) -> str | None:
        """By what it gives out behind each layer but the last, which comes behind the last norm."""
        shown = self._model(**_inputs(probe), output_hidden_states=True)
        for stack, wanted in own.layers(probe).items():
            found = shown.hidden_states if not stack else shown[f"{stack.strip()}_hidden_states"]
            for layer, (a, b) in enumerate(zip(found[1:-1], wanted[:-1], strict=True)):
                if _differ(a[0].numpy(), b, tolerance):
                    return f"in {stack}layer {layer}"
        return "in the last layer or behind it"

    @torch.inference_mode()
    def greedy(self, probe: Probe, num: int) -> list[int]:
        inputs = _inputs(probe)
        # The mask is given, for a mask that is guessed leaves out what is equal to the padding.
        mask = torch.ones_like(inputs["input_ids"])
        found = self._model.generate(**inputs, attention_mask=mask, max_new_tokens=num, do_sample=False, pad_token_id=0)
        return found[0, len(probe.tokens) :].tolist()


def _inputs(probe: Probe) -> dict[str, torch.Tensor]:
    tokens = torch.from_numpy(probe.tokens)[None]
    if probe.source is None:
        return {"input_ids": tokens}
    return {"input_ids": torch.from_numpy(probe.source)[None], "decoder_input_ids": tokens}

"""What a recipe's `task.kind` decides: data, model, loss, evaluation. The training loop knows tasks by this class alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.data.batch import IGNORE, Batch
from zenspeed.evaluate.interval import Figure
from zenspeed.recipe import Recipe
from zenspeed.text.tokenizer import Tokenizer


class Place(NamedTuple):
    """Where a part of an evaluation runs."""

    autocast: AbstractContextManager[Any]
    rank: int = 0
    ranks: int = 1


def place_of(recipe: Recipe) -> Place:
    """One process, in the precision that the run was trained in."""
    return Place(torch.autocast("cpu", torch.bfloat16) if recipe.train.half else nullcontext())


class Task(ABC):
    """Data of one recipe, encoded, with all that depends on what is to be learned from it."""

    @abstractmethod
    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None: ...

    recipe: Recipe
    tokenizer: Tokenizer
    fingerprint: str
    """Hash of the training data: a run is resumed on the data it began with."""
    report: dict[str, Any]
    """Counts of each split, for the run's report."""
    num_samples: int
    """Samples in an epoch of training."""
    tokens_per_sample: float
    """Tokens of a training sample on average; with `evaluation_tokens` it says how long an evaluation will take."""
    evaluation_tokens: int
    bytes_per_token: float = 1.0
    """Of the text that a language model reads."""
    micro_batch_counts: bool = False
    """The loss of a sample depends on those that are in one micro-batch with it: another size is another loss."""

    @abstractmethod
    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        """The model, its weights set: drawn by `seed`, or with `pretrained` those of the folder that the recipe names."""

    def remarks(self) -> list[str]:
        """What people should know of the data before training begins, a line each."""
        return []

    @abstractmethod
    def micro_batches(self, first: int, sizes: Sequence[int]) -> list[Batch]:
        """Batches of `sizes` samples one after the other, from sample number `first` of the endless order on."""

    def num_targets(self, batch: Batch) -> int:
        """What the sum of losses of a batch is divided by, to be one mean over the global batch."""
        return int((batch.targets != IGNORE).sum())

    def num_tokens(self, batch: Batch) -> int:
        """Tokens of text in a batch, without padding."""
        documents = batch.inputs.get("documents")
        tokens = batch.inputs["tokens"]
        return tokens.numel() if documents is None else int((documents >= 0).sum())

    def flops_per_token(self, model: nn.Module) -> float:
        """Operations of a step for each token that `num_tokens` counts."""
        return float(model.flops_per_token(int(self.tokens_per_sample)))  # type: ignore[operator]

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch in nats."""
        inputs, targets = on_device(batch, next(module.parameters()).device)
        return module(**inputs, targets=targets)

    @abstractmethod
    def evaluate(self, model: nn.Module, place: Place) -> dict[str, Figure]:
        """Figures over the whole validation split, the same on all ranks; "loss" is always one of them."""

    @abstractmethod
    def finish(self, model: nn.Module, place: Place, folder: Path, say: Callable[[str], None]) -> dict[str, Figure]:
        """At the end of training: writes samples or predictions into the run's folder; figures on the test split, if any."""

    def data_report(self) -> dict[str, Any] | None:
        """What the training data and what is held out of them are like, for the run's page; of many rows of a sample."""
        return None

    def summary(self, figures: dict[str, Figure]) -> str:
        """One line for people."""
        return " · ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in list(figures.items())[:3])


def on_device(batch: Batch, device: Any) -> tuple[dict[str, Any], Tensor]:
    """Inputs and targets of a batch, tensors moved; to an accelerator out of pinned memory: nothing waits for the copy."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        pinned = value.device.type == "cpu" and device.type not in ("cpu", "meta")
        return value.pin_memory().to(device, non_blocking=True) if pinned else value.to(device)

    return {name: moved(value) for name, value in batch.inputs.items()}, moved(batch.targets)


def sum_over_ranks(tensors: Sequence[Tensor], ranks: int) -> None:
    """In place, every tensor summed over all ranks."""
    if ranks > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)

"""What turns texts into vectors: a run of task `similarity`, or a folder of Hugging Face layout as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from zenspeed.config import InputError, validate
from zenspeed.models.hf import load_huggingface
from zenspeed.recipe import Recipe
from zenspeed.run import open_run
from zenspeed.tasks.base import place_of
from zenspeed.tasks.similarity import SimilarityTask
from zenspeed.tasks.spans import SpanTask
from zenspeed.text.tokenizer import Tokenizer


class Embedder(NamedTuple):
    """`embed` gives vectors of length 1, so that their products are cosines."""

    task: SimilarityTask
    model: nn.Module
    source: Path

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width) float32."""
        return self.task.embed(self.model, texts, place_of(self.task.recipe))


class Reader(NamedTuple):
    """Finds the answer to a question in a passage: a run of task `span_qa`."""

    task: SpanTask
    model: nn.Module


def open_embedder(folder: Path, checkpoint: str | None = None) -> Embedder:
    """The encoder of a run, or of a folder with config.json and safetensors.

    Raises:
        InputError: neither is there, or the run was trained for something else.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        loaded = load_huggingface(folder, "embedding")
        keys: dict[str, Any] = {
            "task": {"kind": "similarity", "text_pair": "text_pair"},
            "model": loaded.config.model_dump(mode="json") | {"huggingface": str(folder)},
        }
        recipe = validate(Recipe, keys, name=str(folder))
        return Embedder(SimilarityTask.of_run(recipe, Tokenizer.load(folder)), loaded.model, folder)
    opened = open_run(folder, checkpoint)
    if opened.recipe.task.kind != "similarity":
        raise InputError(f"{folder}: was trained for {opened.recipe.task.kind}; vectors come from a run of task similarity")
    return Embedder(SimilarityTask.of_run(opened.recipe, opened.tokenizer), opened.model, folder)


def open_reader(folder: Path, checkpoint: str | None = None) -> Reader:
    """The model of a run of task `span_qa`.

    Raises:
        InputError: no run there, or it was trained for something else.
    """
    opened = open_run(Path(folder), checkpoint)
    if opened.recipe.task.kind != "span_qa":
        raise InputError(f"{folder}: was trained for {opened.recipe.task.kind}; answers are read by a run of task span_qa")
    return Reader(SpanTask.of_run(opened.recipe, opened.tokenizer), opened.model)

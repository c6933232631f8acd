"""What turns texts into vectors, and what reads answers: runs, or folders of Hugging Face layout as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from zenspeed.config import InputError, validate
from zenspeed.models.auto import load_pretrained
from zenspeed.models.heads import Head
from zenspeed.models.hf import Loaded, shorten
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
    """Finds the answer to a question in a passage."""

    task: SpanTask
    model: nn.Module


def open_embedder(folder: Path, checkpoint: str | None = None) -> Embedder:
    """The encoder of a run, or of a folder with config.json and safetensors.

    Raises:
        InputError: neither is there, or the run was trained for something else.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        recipe, loaded = _of_folder(folder, "embedding", {"kind": "similarity", "text_pair": "text_pair"})
        return Embedder(SimilarityTask.of_run(recipe, Tokenizer.load(folder)), loaded.model, folder)
    opened = open_run(folder, checkpoint)
    if opened.recipe.task.kind != "similarity":
        raise InputError(f"{folder}: was trained for {opened.recipe.task.kind}; vectors come from a run of task similarity")
    return Embedder(SimilarityTask.of_run(opened.recipe, opened.tokenizer), opened.model, folder)


def open_reader(folder: Path, checkpoint: str | None = None) -> Reader:
    """The model of a run of task `span_qa`, or of a folder with config.json and safetensors that was saved with a span head.

    Raises:
        InputError: neither is there, or it was trained for something else.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        recipe, loaded = _of_folder(folder, "span", {"kind": "span_qa"})
        if loaded.report.initialised:
            raise InputError(f"{folder}: was saved without a span head ({shorten(loaded.report.initialised)}); train it first")
        return Reader(SpanTask.of_run(recipe, Tokenizer.load(folder)), loaded.model)
    opened = open_run(folder, checkpoint)
    if opened.recipe.task.kind != "span_qa":
        raise InputError(f"{folder}: was trained for {opened.recipe.task.kind}; answers are read by a run of task span_qa")
    return Reader(SpanTask.of_run(opened.recipe, opened.tokenizer), opened.model)


def _of_folder(folder: Path, head: Head, task: dict[str, Any]) -> tuple[Recipe, Loaded]:
    """The model in a folder of Hugging Face layout, and a recipe that tells a task how to use it."""
    loaded = load_pretrained(folder, head)
    model = loaded.config.model_dump(mode="json") | {"huggingface": str(folder)}
    return validate(Recipe, {"task": task, "model": model}, name=str(folder)), loaded

"""A run, or a folder of Hugging Face layout that was not trained here, opened to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from zenspeed.config import InputError, load
from zenspeed.errors import missing
from zenspeed.models.auto import load_pretrained
from zenspeed.models.hf import read_json
from zenspeed.recipe import Recipe
from zenspeed.run import open_run
from zenspeed.tasks.base import Place, place_of
from zenspeed.tasks.open import ROW_TASKS
from zenspeed.tasks.rows import RowTask
from zenspeed.text.tokenizer import Tokenizer

_TASK_OF_HEAD = {"language": "language_model", "label": "classification", "masked": "masked_lm", "span": "span_qa"}


class Model(NamedTuple):
    """What an evaluation needs. `trained`: it is a run, which has a validation split of its own."""

    recipe: Recipe
    model: nn.Module
    tokenizer: Tokenizer
    trained: bool

    def task(self) -> RowTask | None:
        """Its task over rows; None: a language model."""
        kind = self.recipe.task.kind
        return ROW_TASKS[kind].of_run(self.recipe, self.tokenizer) if kind in ROW_TASKS else None

    def place(self, rank: int = 0, ranks: int = 1) -> Place:
        """In the precision that the model was trained in."""
        return place_of(self.recipe)._replace(rank=rank, ranks=ranks)


def open_for_evaluation(folder: Path, checkpoint: str | None = None, sets: Sequence[str] = ()) -> Model:
    """The model in evaluation mode. sets: changes of its recipe, such as `task.text=review`.

    Raises:
        InputError: neither a run nor a folder of Hugging Face layout, or one whose head stands for no task.
    """
    if not folder.is_dir():
        raise missing(folder, "model")
    if (folder / "config.json").exists() and not (folder / "checkpoints").exists():
        return _open_folder(folder, sets)
    opened = open_run(folder, checkpoint)
    recipe = load(Recipe, None, sets, base=opened.recipe.model_dump(mode="json")) if sets else opened.recipe
    return Model(recipe, opened.model, opened.tokenizer, trained=True)


def _open_folder(folder: Path, sets: Sequence[str]) -> Model:
    theirs = read_json(folder / "config.json")
    loaded = load_pretrained(folder)
    head = getattr(loaded.model, "kind", "language")
    kind = _TASK_OF_HEAD.get(head)
    if kind is None or (kind != "language_model" and kind not in ROW_TASKS):
        raise InputError(f"{folder}: a {theirs.get('model_type')} with a {head} head answers no task that could be scored")
    names = theirs.get("id2label") or {}
    labels = [str(names[key]) for key in sorted(names, key=int)]
    task = {"kind": kind} | ({"labels": labels} if kind == "classification" and len(labels) > 1 else {})
    base = {
        "task": task,
        "data": {"source": str(folder)},
        "model": loaded.config.model_dump(mode="json"),
        "train": {"precision": "fp32"},
    }
    return Model(load(Recipe, None, sets, base=base), loaded.model.eval(), Tokenizer.load(folder), trained=False)

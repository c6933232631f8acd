"""A finished or running run, opened for use: its recipe, tokenizer, and the model as of a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from zenspeed.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, newest_whole, places
from zenspeed.config import InputError, load, validate
from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.recipe import Recipe
from zenspeed.runlog import note
from zenspeed.runstore import RunStore
from zenspeed.text.tokenizer import Tokenizer

HEADS: dict[str, Head] = {
    "language_model": "language",
    "classification": "label",
    "masked_lm": "masked",
    "span_qa": "span",
    "similarity": "embedding",
    "seq2seq": "language",
    "chat": "language",
    "span_corruption": "language",
}
"""What stands on the model of each task."""


class OpenRun(NamedTuple):
    recipe: Recipe
    model: nn.Module
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def open_run(folder: Path, checkpoint: str | None = None) -> OpenRun:
    """The model of a run in evaluation mode, fp32, on the CPU. `checkpoint`: `latest` (default), `best` or a step's folder.

    Raises:
        InputError: no run there, no such checkpoint, or a damaged one.
    """
    opened = Checkpoint(find_checkpoint(folder, checkpoint))
    recipe = recipe_of(opened)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    with torch.device("meta"):
        labels = len(recipe.task.labels or ())
        model = build_model(recipe.model, opened.state["vocab_size"], HEADS[recipe.task.kind], labels)
    weights = opened.weights()
    names = set(model.state_dict())
    if names != set(weights):
        different = ", ".join(sorted(names ^ set(weights))[:5])
        raise InputError(f"{opened.folder}: its weights are not those of the model in its recipe: {different} …")
    model.load_state_dict(weights, assign=True)
    return OpenRun(recipe, model.eval(), tokenizer, opened)


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    return validate(Recipe, checkpoint.state["recipe"], name=f"{checkpoint.folder / 'checkpoint.json'}")


class Begun(NamedTuple):
    """A run that has a checkpoint to go on from, and the recipe it goes on with."""

    recipe: Recipe
    checkpoint: Path


def begun(
    folder: Path | None, overrides: Sequence[str] = (), checkpoint: str | None = None, storage: str | None = None
) -> Begun | None:
    """The run in `folder` as of a checkpoint, with `section.key=value` overrides; None where it has none yet.

    `storage`: where the run is kept as well; a newer checkpoint there is fetched first.

    Raises:
        InputError: no folder is named, no such checkpoint, or a damaged one.
    """
    if folder is None:
        raise InputError("run.folder: is not given, so each start makes a new one; name it: --set run.folder=runs/mine")
    if storage is not None:
        RunStore(storage).fetch(folder, checkpoint)
    there = _places(folder)
    if checkpoint is None and not any(map(list_checkpoints, there)):
        return None
    found = _newest(folder, there) if checkpoint is None else find_checkpoint(folder, checkpoint)
    before = recipe_of(Checkpoint(found)).model_dump(mode="json")
    return Begun(load(Recipe, None, [*overrides, f"run.folder={json.dumps(str(folder))}"], base=before), found)


def _places(folder: Path) -> list[Path]:
    """Where checkpoints of the run may be: its folder, and the second place that its recipe names."""
    try:
        second = load(Recipe, folder / "recipe.yaml").checkpoint.copy_to
    except InputError:
        second = None
    return places(second, folder)


def _newest(folder: Path, there: Sequence[Path]) -> Path:
    """The newest whole checkpoint in any place; damaged ones are named and passed over."""
    path, wrong = newest_whole(there)
    for reason in wrong:
        if os.environ.get("RANK", "0") == "0":
            note(folder, "checkpoint skipped", reason=reason)
            print(f"skipped: {reason}" + (f"; going on from {path}" if path else ""), file=sys.stderr, flush=True)
    if path is None:
        raise InputError(f"{folder}: none of its checkpoints is whole: {'; '.join(wrong)}")
    return path

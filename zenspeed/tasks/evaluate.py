"""Evaluates the model of a run, whatever its task: on its own validation split, or on other data."""

from __future__ import annotations

from pathlib import Path

from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.run import evaluate_run as evaluate_language
from zenspeed.run import open_run
from zenspeed.tasks.base import place_of
from zenspeed.tasks.data import read_split
from zenspeed.tasks.open import ROW_TASKS, open_task
from zenspeed.tasks.rows import RowTask


def evaluate_run(folder: Path, source: str | None = None, checkpoint: str | None = None) -> dict[str, Figure]:
    """Figures of a run's checkpoint on `source` (file, folder or glob; None: its validation split), in the run's precision.

    Raises:
        InputError: no run there, or `source` cannot be read, or holds labels that the run does not know.
    """
    opened = open_run(folder, checkpoint)
    recipe = opened.recipe
    if recipe.task.kind == "language_model":
        return evaluate_language(folder, source, checkpoint)
    place = place_of(recipe)
    if source is None:
        task = open_task(recipe, None)
        assert isinstance(task, RowTask)
        return task.figures(opened.model, task.validation, place)
    task = ROW_TASKS[recipe.task.kind].of_run(recipe, opened.tokenizer)
    return task.figures(opened.model, task.encode(read_split(recipe, source), source), place)

"""The task that a recipe names."""

from __future__ import annotations

from collections.abc import Callable

from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Task
from zenspeed.tasks.chat import ChatTask
from zenspeed.tasks.classification import ClassificationTask
from zenspeed.tasks.corruption import CorruptionTask
from zenspeed.tasks.language import LanguageTask
from zenspeed.tasks.masked import MaskedTask
from zenspeed.tasks.rows import RowTask
from zenspeed.tasks.seq2seq import Seq2SeqTask
from zenspeed.tasks.similarity import SimilarityTask
from zenspeed.tasks.spans import SpanTask

ROW_TASKS: dict[str, type[RowTask]] = {
    "classification": ClassificationTask,
    "masked_lm": MaskedTask,
    "span_qa": SpanTask,
    "similarity": SimilarityTask,
    "seq2seq": Seq2SeqTask,
    "chat": ChatTask,
    "span_corruption": CorruptionTask,
}
TASKS: dict[str, type[Task]] = {"language_model": LanguageTask, **ROW_TASKS}


def open_task(recipe: Recipe, progress: Callable[[str], None] | None) -> Task:
    """The task of `recipe`, its data read and encoded; says what it does to `progress`.

    Raises:
        InputError: the data cannot be used for it.
    """
    return TASKS[recipe.task.kind](recipe, progress)

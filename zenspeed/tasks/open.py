"""The task that a recipe names."""

from __future__ import annotations

from collections.abc import Callable

from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Task
from zenspeed.tasks.language import LanguageTask


def open_task(recipe: Recipe, progress: Callable[[str], None] | None) -> Task:
    """The task of `recipe`, its data read and encoded; says what it does to `progress`.

    Raises:
        InputError: the data cannot be used for it.
    """
    return LanguageTask(recipe, progress)

"""torch.compile is switched on where it saves more than it costs, and the reason is told."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from zenspeed.compiling import pick_compile
from zenspeed.config import load
from zenspeed.recipe import Recipe


def recipe(*sets: str) -> Recipe:
    return load(Recipe, None, ["train.steps=10", "train.lanes=1", *sets])


@pytest.mark.parametrize(
    ("sets", "device", "seconds", "compiles", "why"),
    [
        ([], "cuda", 3600, True, "saves 497 s of 3600"),
        ([], "cuda", 600, False, "compiling takes 60"),
        ([], "cpu", 3600, True, "1.07 ×"),
        ([], "cpu", 60, False, "saves 4 s"),
        (["train.lanes=2"], "cpu", 3600, False, "lanes"),
        (["parallel.zero=3"], "cuda", 3600, False, "come and go"),
        (["model.architecture=recurrent", "model.preset=lstm"], "cuda", 3600, False, "recurrent"),
        (["train.compile=true", "train.lanes=2"], "cpu", 1, True, "as the recipe says"),
        (["train.compile=false"], "cuda", 1e6, False, "as the recipe says"),
    ],
)
def test_compile_where_it_pays(
    sets: list[str], device: str, seconds: float, compiles: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    said: tuple[bool, str] = pick_compile(recipe(*sets), device, seconds)
    assert said[0] is compiles and why in said[1], said


def test_no_compiler_no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = None
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert pick_compile(recipe(), "cpu", 1e6) == (False, "it needs g++ on a CPU, and there is none on PATH")

"""zenspeed tune from a recipe to a better one, in real processes; and the commands of docs/tuning.md."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.end_to_end.test_tasks import write
from zenspeed import crossval
from zenspeed.cli import app
from zenspeed.config import load
from zenspeed.errors import InputError
from zenspeed.parallel.mesh import world
from zenspeed.recipe import Recipe
from zenspeed.training import train
from zenspeed.tune import layouts, measure, trial
from zenspeed.tune import search as searching
from zenspeed.tune import tune as tuning

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
SMALL = [
    "model={preset: bert, layers: 1, width: 32, heads: 2, context: 32}", "train.precision=fp32", "optim.name=adamw",
    "tokenizer.vocab_size=200", "tokenizer.kind=wordpiece", "log.tensorboard=false", "train.batch_size=8",
]  # fmt: skip


class Here(trial.Running):
    """A trial in this process, which need not import torch anew; several ranks are more than it has."""

    def __init__(self, recipe: Recipe, folder: Path, place: trial.Place) -> None:
        self.folder, self.started, self.died = folder, time.monotonic(), None
        try:
            if place.ranks > 1:
                raise InputError("one process only")
            train(recipe)
        except InputError as error:
            self.died = str(error)

    def poll(self) -> trial.Outcome:
        seconds = time.monotonic() - self.started
        return trial.Outcome({}, seconds, self.died) if self.died else trial._outcome(self.folder / "run", seconds)

    def stop(self) -> None:
        pass


def measure_here(recipe: Recipe, folder: Path, place: trial.Place, *, seeds: int, steps: int) -> measure.Measured:
    with world() as here:
        return measure.Measured(**measure._measure(recipe, here, 2, 12))


def train_here(places: Sequence[Path], jobs: int, say: object) -> None:
    for place in places:
        train(load(Recipe, place / "tuned.yaml", ["sample.prompts=[]"]))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trial, searching, layouts, tuning):
        monkeypatch.setattr(module, "Running", Here)
    monkeypatch.setattr(tuning, "measure", measure_here)
    monkeypatch.setattr(crossval, "_train_all", train_here)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write(tmp_path / "reviews.csv", 90, 1)
    recipe = {"task": {"kind": "classification", "text": "review", "label": "sentiment"}, "train": {"steps": 6}}
    recipe |= {"data": {"source": "reviews.csv"}, "optim": {"lr": 3e-3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def test_a_search_in_real_processes(reviews: Path) -> None:
    small = [part for key in SMALL for part in ("--set", key)]
    space = ["--search", "optim.lr=1e-3..1e-2", "--trials", "1", "--only", "search", "-j", "1"]
    said = run("tune", "recipe.yaml", *small, *space, "--folder", "out")
    assert "trial 0: loss" in said
    assert "optim.lr=0.003" in said  # the recipe as it is comes first
    assert not (reviews / "out" / "trial-0" / "run" / "checkpoints").exists()


def test_the_commands_of_the_page(reviews: Path, in_process: None) -> None:
    """With a small model, few trials, and trials in this process."""
    commands = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) == 4
    small = [part for key in SMALL for part in ("--set", key)]
    few = {"--trials": "1", "--seeds": "1", "--minutes": "0.5", "--folds": "2"}
    said = ""
    for command in commands:
        words = shlex.split(command)[1:]
        words = [few.get(words[i - 1], word) if i else word for i, word in enumerate(words)]
        plain = words[0] == "tune"
        said = run(*words, *(small if plain else []), *(["--seeds", "1"] if plain else []))
    record = json.loads((reviews / "tuned" / "tune.json").read_text())
    assert record["search"]["sets"]
    assert "fresh seeds: loss" in record["verdict"]["said"]
    tuned = (reviews / "tuned" / "tuned.yaml").read_text(encoding="utf-8")
    assert tuned.startswith("# zenspeed tune: ")
    assert "tuned and tested in 2 folds" in said
    assert (reviews / "tuned" / "tune.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_ctrl_c_prints_the_best_so_far(reviews: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the third trial; the same command then goes on."""
    small = [part for key in SMALL for part in ("--set", key)]
    words = ["tune", "recipe.yaml", *small, "--search", "optim.lr=1e-3..1e-2", "--trials", "3", "--only", "search", "-j", "1"]
    begin, begun = Here.__init__, []

    def interrupted(self: Here, recipe: Recipe, folder: Path, place: trial.Place) -> None:
        begun.append(folder)
        if len(begun) == 4:  # after the probe and two trials
            raise KeyboardInterrupt
        begin(self, recipe, folder, place)

    monkeypatch.setattr(Here, "__init__", interrupted)
    said = run(*words, "--folder", "out")
    assert "stopped; the best so far:" in said
    assert "search: loss" in said
    assert "the same command goes on" in said
    assert "# search: loss" in (reviews / "out" / "tuned.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr(Here, "__init__", begin)
    assert "stopped" not in run(*words, "--folder", "out")
    assert len(json.loads((reviews / "out" / "tune.json").read_text())["trials"]) == 3


def test_ctrl_c_before_anything_was_found_says_so(reviews: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Here, recipe: Recipe, folder: Path, place: trial.Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Here, "__init__", interrupted)
    said = run("tune", "recipe.yaml", *[part for key in SMALL for part in ("--set", key)], "--folder", "out")
    assert "stopped; the best so far:" in said and "the recipe stays as it is" in said and "the same command goes on" in said


def test_a_metric_that_is_not_there(reviews: Path, in_process: None) -> None:
    small = [part for key in SMALL for part in ("--set", key)]
    with pytest.raises(InputError, match=r"--metric acuracy: .*nearest first: accuracy,"):
        run("tune", "recipe.yaml", *small, "--metric", "acuracy")


def test_a_recipe_that_does_not_train_is_said_at_once(reviews: Path, in_process: None) -> None:
    with pytest.raises(InputError, match=r"the recipe itself does not train: .*no column 'text'|does not train: .*'text'"):
        run("tune", "recipe.yaml", "--set", "task.text=text")
    with pytest.raises(InputError, match=r"--only layouts: no such part; parts are layout, rate, search, verify"):
        run("tune", "recipe.yaml", "--only", "layouts")

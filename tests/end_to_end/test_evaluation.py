"""A classifier trained once, then evaluated: on two ranks, as a folder of Hugging Face layout, by part, on changed texts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import command, environment
from tests.end_to_end.test_tasks import write
from zenspeed.errors import InputError
from zenspeed.evaluate.score import Options
from zenspeed.models.hf import to_huggingface
from zenspeed.run import open_run
from zenspeed.tasks.evaluate import Asked, evaluate_folder

RECIPE = """
run: {folder: out}
task: {kind: classification, text: review, label: sentiment}
data: {source: train.csv, validation: 0.2, test: test.csv}
tokenizer: {kind: wordpiece, vocab_size: 200}
model: {preset: bert, layers: 2, width: 32, heads: 2, context: 32, dropout: 0.0}
train: {steps: 60, batch_size: 16, precision: fp32}
optim: {name: adamw, lr: 3e-3}
evaluate: {every: 0}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write(folder / "train.csv", 240, 1)
    write(folder / "test.csv", 60, 2)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run(folder, "train", "recipe.yaml")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(place)
    yield place


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def of(found: dict, name: str, part: str = "all") -> dict:
    return next(f for f in found["figures"] if f["name"] == name and f["slice"] == part)


def test_two_ranks_give_the_figures_of_one(place: Path) -> None:
    arguments = ["evaluate", "out", "--data", "test.csv", "--slice", "length:60", "--threshold", "precision=0.5", "--json"]
    printed = run(place, *arguments, "one.json")
    run(place, "launch", "-n", "2", *arguments, "two.json")
    one, two = (json.loads((place / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two and one["n"] == 60
    assert "length < 60" in printed and "warning:" in printed and "log_loss_scaled" in printed and "threshold" in printed


def test_a_folder_that_was_not_trained_here(inside: Path) -> None:
    opened = open_run(Path("out"))
    to_huggingface(opened.model, "hf", label_names=opened.recipe.task.labels)
    opened.tokenizer.save(Path("hf"))
    sets = ["task.text=review", "task.label=sentiment", "task.max_tokens=32"]
    options = Options(slices=["sentiment"], protected=["sentiment"])
    theirs = evaluate_folder(Path("hf"), Asked(["test.csv"], sets=sets, options=options))
    ours = evaluate_folder(Path("out"), Asked(["test.csv"], options=options))
    assert of(theirs, "accuracy")["value"] == of(ours, "accuracy")["value"]
    assert of(theirs, "loss")["value"] == pytest.approx(of(ours, "loss")["value"], rel=1e-4)
    assert {f["value_of_slice"] for f in ours["figures"]} == {"", "bad", "good", "odd"}
    assert any(f["name"] == "demographic_parity_gap[bad]" for f in ours["fairness"])
    with pytest.raises(InputError, match="was not trained here"):
        evaluate_folder(Path("hf"), Asked())


def test_changed_texts_and_several_sources(inside: Path) -> None:
    asked = Asked(["test.csv", "train.csv"], robust=["upper", "typos"], predictions=Path("answers.jsonl"))
    found = evaluate_folder(Path("out"), asked)
    assert [(e["change"], e["n"]) for e in found["robustness"]] == [("upper", 300), ("typos", 300)]
    assert {f["value_of_slice"] for f in found["figures"] if f["slice"] == "data"} == {"test.csv", "train.csv"}
    assert len(Path("answers.jsonl").read_text().splitlines()) == 300
    with pytest.raises(InputError, match="not known; give all"):
        evaluate_folder(Path("out"), Asked(["test.csv"], robust=["noise"]))

"""A classifier trained once, then evaluated: on two ranks, as a folder of Hugging Face layout, by part, on changed texts."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.nn import Module

from tests.end_to_end.conftest import command, environment
from tests.end_to_end.test_tasks import write
from zenspeed.config import load
from zenspeed.crossval import Plan, crossval
from zenspeed.errors import InputError
from zenspeed.evaluate.score import Options
from zenspeed.models.hf import to_huggingface
from zenspeed.recipe import Recipe
from zenspeed.run import open_run
from zenspeed.tasks import rows as tasks_rows
from zenspeed.tasks.base import Place
from zenspeed.tasks.classification import ClassificationTask
from zenspeed.tasks.evaluate import Asked, evaluate_folder
from zenspeed.text.tokenizer import Tokenizer

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


def review(i: int) -> str:
    """A word that no other row has."""
    return f"the zq{'abcdefghi'[i % 9]}{'abcdefghij'[i // 9]}x film was {'fine' if i % 2 else 'awful'}"


def test_cross_validation_learns_nothing_from_the_fold_it_is_tested_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of a fold's test rows that is in no training row is unknown to that fold's tokenizer."""
    with (place / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment", "author"])
        for i in range(90):
            writer.writerow([review(i), "ab"[i % 2], i % 9])
    monkeypatch.chdir(place)
    sets = ["data.source=table.csv", "data.test=null", "train.steps=30", "tokenizer={kind: word, vocab_size: 500}"]
    recipe, said = load(Recipe, Path("recipe.yaml"), sets), []  # type: ignore[var-annotated]
    plan = Plan(Path("cv"), 2, group_by="author")
    found = crossval(recipe, plan, said.append)
    accuracy = of(found, "accuracy")
    values = [f["value"] for f in found["fold_figures"] if f["name"] == "accuracy"]
    assert len(values) == 2 and accuracy["value"] == pytest.approx(sum(values) / 2)
    assert found["pooled"]["n"] == 90 and of(found["pooled"], "accuracy")["n"] == 90
    tested = []
    for fold in sorted((place / "cv" / "repeat-1").iterdir()):
        train, test = ([json.loads(x) for x in (fold / f"{n}.jsonl").read_text().splitlines()] for n in ("train", "test"))
        assert not {r["author"] for r in train} & {r["author"] for r in test}
        vocabulary = Tokenizer.load(fold / "run" / "tokenizer")
        only = {w for r in test for w in r["review"].split()} - {w for r in train for w in r["review"].split()}
        assert only and all(vocabulary.decode(vocabulary.encode(w)) != w for w in only)
        tested += [r["review"] for r in test]
    assert sorted(tested) == sorted(map(review, range(90)))
    assert crossval(recipe, plan, said.append)["figures"] == found["figures"] and "2 folds are done already" in said[-1]
    with pytest.raises(InputError, match="of another cross-validation"):
        crossval(recipe, plan._replace(seed=2), said.append)


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


def test_rows_are_answered_a_block_at_a_time(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a block is held, blocks change no figure, and changed texts are the same in every block."""
    options = Options(slices=["sentiment"])
    asked = Asked(["test.csv", "train.csv"], options=options, robust=["typos"], predictions=Path("whole.jsonl"))
    whole = evaluate_folder(Path("out"), asked)
    sizes, predict = [], ClassificationTask.predict

    def watched(task: ClassificationTask, model: Module, rows: list, place: Place) -> list:
        sizes.append(len(rows))
        return predict(task, model, rows, place)

    monkeypatch.setattr(ClassificationTask, "predict", watched)
    monkeypatch.setattr(tasks_rows, "BLOCK_ROWS", 47)
    blocks = evaluate_folder(Path("out"), asked._replace(predictions=Path("blocks.jsonl")))
    assert max(sizes) == 47 and sum(sizes) == 600
    for a, b in zip(whole["figures"], blocks["figures"], strict=True):
        assert a["name"] == b["name"] and a["n"] == b["n"] and a["value"] == pytest.approx(b["value"], abs=1e-5)
    assert whole["robustness"][0]["texts_changed"] == blocks["robustness"][0]["texts_changed"]
    one, other = (Path(name).read_text().splitlines() for name in ("whole.jsonl", "blocks.jsonl"))
    assert [json.loads(line)["text"] for line in one] == [json.loads(line)["text"] for line in other]

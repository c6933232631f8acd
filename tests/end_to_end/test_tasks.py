"""Tasks over rows, from a table to predictions, as a user types them."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli
from tests.end_to_end.shipped import DATA, write_data
from zenspeed.config import load
from zenspeed.display import Display
from zenspeed.recipe import Recipe, TaskConfig
from zenspeed.runlog import read_metrics
from zenspeed.tasks.choose import choose
from zenspeed.training import train

WORDS = {"good": ["fine", "great", "lovely", "bright"], "bad": ["awful", "dull", "sad", "broken"], "odd": ["strange", "queer"]}
NEUTRAL = ["the", "film", "was", "a", "story", "of", "people", "who", "walk", "far", "and", "talk"]


def write(path: Path, count: int, seed: int, more: list[tuple[str, str]] | None = None) -> None:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = list(WORDS)[i % 3]
        words = rng.choices(NEUTRAL, k=rng.randint(2, 24))
        words.insert(rng.randrange(len(words)), rng.choice(WORDS[label]))
        rows.append((" ".join(words), label))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        writer.writerows(rows + (more or []))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write(tmp_path / "train.csv", 240, 1)
    write(tmp_path / "test.csv", 60, 2)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
run: {folder: out}
task: {kind: classification, text: review, label: sentiment}
data: {source: train.csv, validation: 0.2, test: test.csv}
tokenizer: {kind: wordpiece, vocab_size: 200}
model: {preset: bert, layers: 2, width: 32, heads: 2, context: 32, dropout: 0.0}
train: {steps: 250, batch_size: 16, precision: fp32}
optim: {name: adamw, lr: 3e-3}
evaluate: {every: 0}
log: {tensorboard: false}
""",
        encoding="utf-8",
    )
    return path


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(folder) if "loss" in r]


def test_classification_from_a_table(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    out = cli("train", recipe).stdout
    assert "192 train, 48 validation, 60 test rows" in out
    predictions = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    right = sum(p["label"] == p["prediction"] for p in predictions) / len(predictions)
    assert len(predictions) == 60 and right > 0.8
    assert sum(predictions[0]["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert load(Recipe, tmp_path / "out" / "recipe.yaml").task.labels == ["bad", "good", "odd"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| test accuracy |" in report and "label 'odd': 6" in report
    # Evaluated again from the checkpoint, on the same rows: the same figure.
    cli("evaluate", "out", "--data", "test.csv", "--json", "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    accuracy = next(f for f in figures["figures"] if f["name"] == "accuracy")
    assert accuracy["value"] == pytest.approx(right) and accuracy["n"] == 60
    again = cli("evaluate", "out").stdout
    assert "balanced_accuracy" in again and "recall[odd]" in again
    # The predictions alone give the same, and a worse system is seen to be worse.
    cli("evaluate", "--predictions", "out/predictions.jsonl", "--slice", "label", "--json", "scored.json")
    scored = json.loads((tmp_path / "scored.json").read_text())
    accuracy = next(f for f in scored["figures"] if f["name"] == "accuracy" and f["slice"] == "all")
    assert accuracy["value"] == pytest.approx(right) and scored["schema"] == "zenspeed.evaluation"
    (tmp_path / "worse.jsonl").write_text("".join(json.dumps(p | {"prediction": "odd"}) + "\n" for p in predictions))
    assert "worse.jsonl is worse than out" in cli("compare", "out", "worse.jsonl").stdout
    assert "one of them" in cli("evaluate", code=2).stderr
    refused = cli("generate", "out", "--prompt", "x", code=2).stderr
    assert "was trained for classification" in refused


def test_a_text_that_is_too_long_is_said_or_read_in_windows(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    few = ["--set", "train.steps=1", "--set", "task.max_tokens=8"]
    said = cli("train", recipe, *few).stdout
    assert "texts of the training rows are longer than 8 tokens and lose their end" in said
    assert "of the test rows are longer" in said
    said = cli("train", recipe, *few, "--set", "task.stride=2", "--set", "run.folder=windows").stdout
    assert "lose their end" not in said


def test_layouts_and_packing_change_no_loss(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    few = ["--set", "train.steps=6", "--set", "checkpoint.every=3"]
    cli("train", recipe, *few)
    reference = losses(tmp_path / "out")
    cli("train", recipe, *few, "--set", "run.folder=padded", "--set", "train.batching=padded")
    cli("train", recipe, *few, "--set", "run.folder=cut", "--set", "train.micro_batch_size=4")
    cli("launch", "-n", "2", "train", str(recipe), *few, "--set", "run.folder=two", "--set", "parallel.zero=2")
    for name in ("padded", "cut", "two"):
        assert losses(tmp_path / name) == pytest.approx(reference, rel=1e-5), name
    # Gone on with from the middle: bit for bit the same.
    cli("resume", "out", "--checkpoint", "step-00000003", "--set", "train.steps=6")
    assert losses(tmp_path / "out") == reference


def test_masked_language_model_of_plain_text(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    sets = [
        "task.kind=masked_lm", "model.preset=bert", "model.layers=1", "model.width=32", "model.heads=2", "model.context=64",
        "model.dropout=0", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=400", "train.steps=30", "train.batch_size=16",
        "optim.name=adamw", "optim.lr=3e-3", "run.folder=out", "evaluate.every=0", "log.tensorboard=false",
        "train.precision=fp32",
    ]  # fmt: skip
    cli("train", corpus, *[part for key in sets for part in ("--set", key)])
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) < sum(curve[:5]) - 1
    assert "loss" in cli("evaluate", "out").stdout


def test_cleaning_is_counted(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", 240, 1, [("The SAME text, twice", "good"), ("the same text twice", "good")])
    sets = ["data.clean={lowercase: true, punctuation: true, duplicates: exact}", "train.steps=2", "data.test=null"]
    out = cli("train", recipe, *[part for key in sets for part in ("--set", key)]).stdout
    assert "1 rows left out by data.clean: duplicates" in out
    assert "left out by duplicates: 1 rows" in (tmp_path / "out" / "report.md").read_text()


BAD = {
    "one label only": (["data.source=one.csv"], "holds one label only, 'good'"),
    "labels that are texts": (["task.label=review"], "different values in"),
    "labels that are numbers": (["data.source=rated.csv"], "holds measured numbers"),
    "an unknown label in the test rows": (["data.test=unseen.csv"], "'goood' in column 'sentiment' of the test rows (row 61)"),
    "a column that is not there": (["task.text=reviews"], "no column 'reviews'; did you mean"),
    "compiled rows": (["train.compile=true"], "train.compile: batches of classification have many shapes"),
    "a curriculum that is not there": (["train.curriculum=hardness"], "train.curriculum: no column 'hardness'"),
    "test rows that are training rows": (["data.test=train.csv"], "192 of 240 test rows are in the training set"),
    "a mixture of rows": (["data.source=python-docs", "data.sources=[{source: train.csv}]"], "data.sources: a mixture is for"),
    "groups without a column": (["data.hold_out=grouped"], "grouped needs data.hold_out_by, the column of the group"),
    "rows for a language model": (["task.kind=language_model"], "data.test: is for tasks with rows"),
    "a decoder under masked_lm": (
        ["task.kind=masked_lm", "task.text=review", "model={preset: gpt}"],
        "masked_lm needs an encoder",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, recipe: Path, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "unseen.csv", 60, 3, [("the film", "goood")])
    (tmp_path / "one.csv").write_text("review,sentiment\n" + "a film,good\n" * 30, encoding="utf-8")
    rated = [f"a film of {i} hours,{i % 60 / 20}" for i in range(240)]
    (tmp_path / "rated.csv").write_text("\n".join(["review,sentiment", *rated]), encoding="utf-8")
    sets, message = BAD[name]
    done = cli("train", recipe, *[part for key in sets for part in ("--set", key)], code=2)
    assert message in done.stderr, done.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_table_is_enough(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    """Everything is chosen from the rows, said, and written; the recipe that is written trains the same again."""
    columns = ["--task", "classification", "--text", "review", "--label=sentiment"]
    few = ["--set", "train.steps=3", "--set", "log.tensorboard=false", "--set", "train.precision=fp32"]
    out = cli("train", "train.csv", *columns, *few, "--set", "run.folder=chosen").stdout
    for part in ("240 rows", "3 labels in 'sentiment'", "wordpiece", "encoder, 2 blocks", "32 tokens", "16 rows an update"):
        assert part in out, out
    assert "recipe      chosen/recipe.yaml" in out
    cli("train", "chosen/recipe.yaml", "--set", "run.folder=again")
    assert losses(tmp_path / "again") == losses(tmp_path / "chosen")
    refused = cli("train", "train.csv", "--text", "reviews", "--label", "sentiment", code=2).stderr
    assert "no column 'reviews' for --text; did you mean --text review?" in refused
    assert "--task: is for data" in cli("train", recipe, "--task", "classification", code=2).stderr
    assert "train.csv2: unexpected" in cli("train", "train.csv", "train.csv2", code=2).stderr


@pytest.mark.parametrize("kind", DATA)
def test_every_task_trains_from_its_table_alone(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = TaskConfig(text_pair="text_pair") if kind == "similarity" else TaskConfig()
    keys = {"text_pair": "text_pair"} if kind == "similarity" else {}
    sets = ["train.steps=1", "run.folder=out", "log.tensorboard=false", "sample.max_tokens=2", f"data.cache={tmp_path}"]
    chosen = choose(str(write_data(kind, tmp_path, task)), kind, keys, sets)
    train(load(Recipe, None, sets, base=chosen.recipe), display=Display(enabled=False))
    assert len(losses(tmp_path / "out")) == 1

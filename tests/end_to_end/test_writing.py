"""Texts out of texts, as a user types it: from a table to a translation, an answer, and figures."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli
from zenspeed.runlog import read_metrics

ENGLISH = ["red", "big", "old", "sad", "one", "two", "cat", "dog", "sun", "sea", "man", "car"]
WORDS = dict(zip(ENGLISH, "红大旧伤一二猫狗日海人车", strict=True))
RECIPE = """
run: {folder: out}
task: {kind: seq2seq, control: [to], length: words}
data: {source: train.csv, validation: 0.05, test: test.csv, leakage: allow}
tokenizer: {kind: wordpiece, vocab_size: 400}
model: {preset: transformer, layers: 2, width: 48, heads: 4, context: 32, dropout: 0.0}
train: {steps: 200, batch_size: 32, precision: fp32}
optim: {name: adamw, lr: 3.0e-3}
decode: {beams: 2, max_tokens: 12}
evaluate: {every: 0}
log: {tensorboard: false}
"""


def write(path: Path, count: int, seed: int, header: list[str]) -> None:
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i in range(count):
            words = rng.choices(list(WORDS), k=rng.randint(2, 5))
            pair = " ".join(words), " ".join(WORDS[w] for w in words)
            writer.writerow([*(pair if i % 2 else pair[::-1]), ["en", "zh"][i % 2]][: len(header)])


def test_a_table_of_pairs_becomes_a_translator(cli: Cli, tmp_path: Path) -> None:
    for name, count in (("train", 1200), ("test", 40)):
        write(tmp_path / f"{name}.csv", count, count, ["text", "target", "to"])
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    out = cli("train", "recipe.yaml").stdout
    assert "predictions" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(row["prediction"] == row["reference"] for row in rows) >= 28, "40 rows; it does not translate"
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| test chrf[zh] |" in report and "| test length kept |" in report
    cli("evaluate", "out", "--data", "test.csv", "--json", "figures.json")
    scored = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    figures = {figure["name"]: figure for figure in scored["figures"]}
    right = sum(row["prediction"].split() == row["reference"].split() for row in rows) / 40
    assert figures["exact_match"]["value"] == pytest.approx(right) and "sacrebleu" in figures["bleu[en]"]["definition"]
    asked = ["--prompt", "红 猫", "--control", "to=en", "--length", "2"]
    assert cli("generate", "out", *asked).stdout == "red cat\n"
    assert "it has to=…" in cli("generate", "out", "--prompt", "x", "--control", "form=en", code=2).stderr
    assert "has no 'words'" in cli("generate", "out", "--prompt", "猫", "--control", "to=en", code=2).stderr
    assert "does not know 100.0% of it" in cli("generate", "out", "--prompt", "xq", *asked[2:], code=2).stderr


def test_two_ranks_write_what_one_does(cli: Cli, tmp_path: Path) -> None:
    """At stage 3 no rank has the weights by itself, and decoding calls parts of the model."""
    for name, count in (("train", 200), ("test", 12)):
        write(tmp_path / f"{name}.csv", count, count, ["text", "target", "to"])
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    few = ["--set", "train.steps=4", "--set", "decode.max_tokens=4"]
    cli("train", "recipe.yaml", *few)
    cli("launch", "-n", "2", "train", "recipe.yaml", *few, "--set", "run.folder=two", "--set", "parallel.zero=3")
    losses = [[r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("out", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, two = ((tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8") for name in ("out", "two"))
    assert one == two

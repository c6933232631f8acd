"""Questions, search and answers as a user types them: train, index, search, answer or "not found"."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.end_to_end.conftest import Cli
from tests.end_to_end.shipped import write_pretrained
from zenspeed.cli import app
from zenspeed.config import load
from zenspeed.errors import InputError
from zenspeed.models.build import build_model
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.recipe import Recipe
from zenspeed.runlog import read_metrics
from zenspeed.tasks.evaluate import evaluate_run
from zenspeed.training import train

SETS = [
    "data.validation=0.2", "run.folder=run", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=90", "model.preset=bert",
    "model.layers=1", "model.width=32", "model.heads=2", "model.context=24", "model.dropout=0", "train.batch_size=16",
    "train.precision=fp32", "optim.name=adamw", "optim.lr=5e-3", "evaluate.every=0", "log.tensorboard=false",
]  # fmt: skip
COLOURS = ["red", "blue", "green", "black"]
FILLER = ["the", "film", "was", "a", "long", "story", "of", "people", "who", "walk", "far", "and", "talk"]


def write_questions(path: Path, count: int, seed: int) -> None:
    """The answer is the colour in the text; one text in five has none."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        words = rng.choices(FILLER, k=rng.randint(6, 40))
        colour = rng.choice(COLOURS) if i % 5 else ""
        words.insert(rng.randrange(len(words)), colour)
        context = " ".join(words)
        rows.append({"question": "which colour", "context": context, "answer": colour})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(sets: list[str]) -> None:
    torch.set_num_threads(1)
    train(load(Recipe, None, [*SETS, *sets]))


def zenspeed(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_questions_from_rows_to_answers_out_of_an_index(here: Path) -> None:
    write_questions(here / "train.jsonl", 300, 1)
    run(["task.kind=span_qa", "data.source=train.jsonl", "task.max_answer_tokens=4", "train.steps=150"])
    predictions = [json.loads(line) for line in (here / "run" / "predictions.jsonl").read_text().splitlines()]
    right = [p["prediction"] == p["reference"] for p in predictions]
    assert sum(right) / len(right) > 0.9, predictions[:3]
    for p in predictions:
        assert p["prediction"] == "" or p["context"][p["start"] : p["end"]] == p["prediction"]
    figures = evaluate_run(here / "run")
    assert figures["exact_match"].value == pytest.approx(sum(right) / len(right)) and "refused_rightly" in figures
    # From documents to an answer with its place in them, and to none.
    document = "people walk far and talk\n\nthe long story was blue of people who talk"
    (here / "documents.jsonl").write_text(
        json.dumps({"id": "one", "text": document}) + "\n" + json.dumps({"id": "two", "text": "who walk far"}) + "\n"
    )
    zenspeed("index", "documents.jsonl", "index")
    said = zenspeed("answer", "index", "which colour was the story", "--reader", "run", "-k", "1", "--json", "said.json")
    found = json.loads((here / "said.json").read_text())
    assert found["found"] and document[found["start"] : found["end"]] == found["prediction"] == "blue"
    assert said.startswith(f"blue\n  one [{document.index('blue')}:")
    assert zenspeed("answer", "index", "who walk", "--reader", "run", "--refuse-below", "1.0").startswith("not found")
    # The threshold is chosen on questions, and kept.
    rows = [
        {"question": "which colour was the story", "answer": "blue", "document": "one"},
        {"question": "who", "answer": ""},
    ]
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = zenspeed("answer", "index", "--reader", "run", "-k", "1", "--questions", "asked.jsonl", "--calibrate")
    assert "refuse_below" in out and "recall@1" in out and "refused_rightly" in out
    assert isinstance(json.loads((here / "index" / "index.json").read_text())["refuse_below"], float)


def test_search_with_a_model_that_learned_what_belongs_together(here: Path) -> None:
    names = {"cat": "feline", "dog": "canine", "horse": "equine", "cow": "bovine"}
    rng, rows = random.Random(1), []
    for i in range(240):
        name = list(names)[i % 4]
        rows.append({"a": " ".join([*rng.choices(FILLER, k=4), name]), "b": " ".join([names[name], *rng.choices(FILLER, k=4)])})
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ["task.kind=similarity", "task.text=a", "task.text_pair=b", "data.source=pairs.jsonl", "model.pool=mean"]
    run([*sets, "train.steps=60", "train.micro_batch_size=16"])
    curve = [r["loss"] for r in read_metrics(here / "run") if "loss" in r]
    assert sum(curve[-5:]) < sum(curve[:5])
    assert set(json.loads((here / "run" / "predictions.jsonl").read_text().splitlines()[0])) >= {"text", "rank", "candidates"}
    assert "recall@10" in evaluate_run(here / "run")
    (here / "animals").mkdir()
    for name in names.values():
        (here / "animals" / f"{name}.txt").write_text(f"{name} walk far")
    zenspeed("index", "animals", "index", "--run", "run")
    hits = [zenspeed("search", "index", f"talk {name}", "-k", "1") for name in names]
    assert sum(names[name] in hit for name, hit in zip(names, hits, strict=True)) >= 3, hits
    assert "nothing found" in zenspeed("search", "index", "cat", "--how", "words")


def first_losses(here: Path, name: str, *sets: str) -> list[float]:
    run([f"run.folder={name}", "train.steps=3", *sets])
    return [r["loss"] for r in read_metrics(here / name) if "loss" in r]


def test_accumulation_and_padding_change_no_loss(here: Path) -> None:
    write_questions(here / "train.jsonl", 100, 1)
    sets = ["task.kind=span_qa", "data.source=train.jsonl", "tokenizer.kind=bpe", "tokenizer.vocab_size=300"]
    whole = first_losses(here, "whole", *sets)
    assert first_losses(here, "cut", *sets, "train.micro_batch_size=4") == pytest.approx(whole, rel=1e-5)
    assert first_losses(here, "padded", *sets, "train.batching=padded") == pytest.approx(whole, rel=1e-5)


def test_negatives_are_those_of_a_micro_batch_on_any_number_of_ranks(here: Path, cli: Cli) -> None:
    rows = [{"a": f"word {i} is", "b": f"no {i}"} for i in range(60)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [
        "task.kind=similarity", "task.text=a", "task.text_pair=b", "data.source=pairs.jsonl", "tokenizer.kind=bpe",
        "tokenizer.vocab_size=300", "train.micro_batch_size=8",
    ]  # fmt: skip
    one = first_losses(here, "one", *sets)
    keys = [*SETS, *sets, "train.steps=3", "run.folder=two"]
    cli("launch", "-n", "2", "train", *(part for key in keys for part in ("--set", key)))
    assert [r["loss"] for r in read_metrics(here / "two") if "loss" in r] == pytest.approx(one, rel=1e-5)
    assert (here / "one" / "predictions.jsonl").read_text() == (here / "two" / "predictions.jsonl").read_text()


def gpt2(folder: Path) -> None:
    write_pretrained(folder)
    to_huggingface(build_model(ModelConfig(preset="gpt2", layers=1, width=16, heads=2, context=64), 60), folder)


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(write_pretrained(folder) / "model.safetensors")
    weights.pop(next(name for name in weights if "intermediate.dense.weight" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BAD: dict[str, tuple[list[str], str]] = {
    "no question": (["task.question=query"], "no column 'query'; set task.question to one that is there"),
    "no answers": (["task.answer=answers"], "no column 'answers'; did you mean"),
    "no second text": (["task.kind=similarity", "task.text=question", "task.text_pair=other"], "no column 'other'"),
    "an answer elsewhere": (
        ["data.source=bad.jsonl"],
        "'blue' is not at 2 of the context, .* the nearest place where it is: 4",
    ),
    "cleaning that moves answers": (["data.clean={lowercase: true}"], "would move the answers of span_qa"),
    "another architecture": (["model={huggingface: gpt2}", "tokenizer={}"], "a gpt2 has no span head; it has"),
    "weights missing": (
        ["model={huggingface: broken}", "tokenizer={}"],
        "broken: the weights do not fit config.json: 1 missing: .*intermediate.dense.weight",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, here: Path) -> None:
    write_questions(here / "train.jsonl", 40, 1)
    bad = {"question": "which", "context": "the blue film", "answer": "blue", "answer_start": 2}
    (here / "bad.jsonl").write_text((here / "train.jsonl").read_text() + json.dumps(bad) + "\n")
    gpt2(here / "gpt2")
    without_a_weight(here / "broken")
    sets, message = BAD[name]
    base: dict[str, Any] = {"task": {"kind": "span_qa"}, "data": {"source": "train.jsonl"}, "run": {"folder": "run"}}
    with pytest.raises(InputError, match=message):
        train(load(Recipe, None, sets, base=base))
    assert not (here / "run" / "checkpoints").exists()

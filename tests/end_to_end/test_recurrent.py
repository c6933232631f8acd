"""RNN and LSTM through recipes: language model and classifier, trained, evaluated, continued, and what they cannot do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.shipped import write_data
from tests.end_to_end.test_tasks import write
from zenspeed.checkpoint import find_checkpoint
from zenspeed.config import InputError, load
from zenspeed.display import Display
from zenspeed.generate import generate_text
from zenspeed.recipe import Recipe
from zenspeed.run import open_run
from zenspeed.runlog import read_metrics
from zenspeed.tasks.evaluate import evaluate_run
from zenspeed.training import train


def run_recipe(folder: Path, resume: Path | None = None, **sections: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "run": {"folder": str(folder)},
        "train": {"batch_size": 16, "precision": "fp32"},
        "optim": {"name": "adamw", "lr": 1e-2},
        "evaluate": {"every": 0},
        "checkpoint": {"every": 20},
        "log": {"tensorboard": False},
        "sample": {"max_tokens": 4},
    }
    for name, keys in sections.items():
        base[name] = base.get(name, {}) | keys
    train(load(Recipe, None, base=base), resume=resume, display=Display(enabled=False))


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


@pytest.mark.parametrize("preset", ["rnn", "lstm"])
def test_language_model(preset: str, tmp_path: Path) -> None:
    source = write_data("language_model", tmp_path, Recipe().task)
    sections: dict[str, Any] = {
        "data": {"source": str(source), "section_characters": 300, "cache": str(tmp_path)},
        "tokenizer": {"kind": "char"},
        "model": {"preset": preset, "layers": 1, "width": 48, "context": 48},
        "train": {"steps": 60},
        "optim": {"lr": 3e-2},
    }
    run_recipe(tmp_path / "out", **sections)
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) < sum(curve[:5]) - 4  # 0.8 nats a character: more than the letters' frequencies give
    opened = open_run(tmp_path / "out")
    assert evaluate_run(tmp_path / "out")["loss"].value == pytest.approx(read_metrics(tmp_path / "out")[-1]["validation_loss"])
    text = "".join(generate_text(opened.model, opened.tokenizer, "the ", max_tokens=8, seed=1))  # type: ignore[arg-type]
    assert text and (tmp_path / "out" / "samples.md").exists()
    run_recipe(tmp_path / "out", find_checkpoint(tmp_path / "out", "step-00000040"), **sections)
    assert losses(tmp_path / "out") == curve  # from the middle, bit for bit


@pytest.mark.parametrize("preset", ["rnn", "lstm"])
def test_classifier(preset: str, tmp_path: Path) -> None:
    """The word that decides stands anywhere in up to 25 words, which the state has to carry to the end."""
    write(tmp_path / "train.csv", 400, 1)
    sections: dict[str, Any] = {
        "task": {"kind": "classification", "text": "review", "label": "sentiment"},
        "data": {"source": str(tmp_path / "train.csv"), "validation": 0.2},
        "tokenizer": {"kind": "word"},
        "model": {"preset": preset, "layers": 1, "width": 48, "context": 32, "pool": "mean"},
        "train": {"steps": 80},
    }
    run_recipe(tmp_path / "out", **sections)
    figures = evaluate_run(tmp_path / "out")
    assert figures["accuracy"].value > 0.8, figures["accuracy"]
    padded = sections | {"train": {"steps": 6, "batching": "padded"}}
    run_recipe(tmp_path / "padded", **padded)
    run_recipe(tmp_path / "packed", **sections | {"train": {"steps": 6}})
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "padded"), rel=1e-5)


def test_a_classifier_begins_from_a_language_model(tmp_path: Path) -> None:
    source = write_data("language_model", tmp_path, Recipe().task)
    data = {"source": str(source), "section_characters": 300, "cache": str(tmp_path)}
    model = {"preset": "lstm", "layers": 1, "width": 16, "context": 32}
    run_recipe(tmp_path / "text", data=data, tokenizer={"kind": "char"}, model=model, train={"steps": 1})
    write_data("classification", tmp_path, Recipe().task)
    data = {"source": str(tmp_path / "data.csv"), "validation": 0.2}
    start = {"from_run": str(tmp_path / "text")}
    run_recipe(tmp_path / "labels", task={"kind": "classification"}, data=data, model=start, train={"steps": 1})
    assert open_run(tmp_path / "labels").recipe.model.cell == "lstm"


def test_hidden_words_need_both_sides(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"{random.random()} of all" for _ in range(50)), encoding="utf-8")
    with pytest.raises(InputError, match="a recurrent does not see what follows; masked_lm needs an encoder"):
        run_recipe(
            tmp_path / "out", task={"kind": "masked_lm"}, data={"source": str(tmp_path / "a.txt"), "section_characters": 40},
            tokenizer={"kind": "wordpiece"}, model={"preset": "lstm"}, train={"steps": 1},
        )  # fmt: skip

"""Training that begins from weights: of an earlier run, of a folder of Hugging Face layout; and folders that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.shipped import write_data, write_pretrained
from zenspeed.config import InputError, load
from zenspeed.display import Display
from zenspeed.recipe import Recipe
from zenspeed.run import open_run
from zenspeed.runlog import read_metrics
from zenspeed.tasks.evaluate import evaluate_run
from zenspeed.training import train

Train = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, rows, a pretrained folder, and a masked language model trained on the text."""
    folder = tmp_path_factory.mktemp("start")
    for kind in ("masked_lm", "classification"):
        write_data(kind, folder, Recipe().task)
    write_pretrained(folder / "pretrained")
    size = {"preset": "bert", "layers": 1, "width": 16, "heads": 2, "context": 32}
    run_recipe(
        folder, "masked", task={"kind": "masked_lm"}, model=size, tokenizer={"kind": "wordpiece", "vocab_size": 60},
        data={"source": str(folder / "data.txt"), "section_characters": 200}, optim={"name": "adamw", "lr": 1e-3},
    )  # fmt: skip
    return folder


def run_recipe(folder: Path, name: str, steps: int = 2, **sections: dict[str, Any]) -> str:
    """Trains in this process and returns what was said."""
    base: dict[str, Any] = {
        "run": {"folder": str(folder / name)},
        "task": {"kind": "classification"},
        "data": {"source": str(folder / "data.csv"), "validation": 0.2},
        "train": {"steps": steps, "batch_size": 8, "precision": "fp32"},
        "evaluate": {"every": 0},
        "log": {"tensorboard": False},
    }
    said: list[str] = []
    display = Display(enabled=False)
    display.say = said.append  # type: ignore[method-assign]
    train(load(Recipe, None, base=base | sections), display=display)
    return "\n".join(said)


def test_a_classifier_begins_from_a_masked_language_model(place: Path) -> None:
    said = run_recipe(place, "labels", steps=1, model={"from_run": str(place / "masked"), "dropout": 0.0})
    assert "5 weights not used: head.bias" in said and "4 weights new, to be trained: head.pooler" in said
    assert "rate 0.0005" in said
    before, after = open_run(place / "masked"), open_run(place / "labels")
    assert after.tokenizer.encode("a long story") == before.tokenizer.encode("a long story")
    assert after.recipe.model.dropout == 0.0 and after.recipe.model.layers == 1
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    moved = [float((ours[name] - theirs[name]).abs().max()) for name in theirs if name.startswith("body.")]
    assert 0 < max(moved) < 1e-3  # one update of a rate that rises from 0: all but where it began


def test_a_run_goes_on_under_its_own_head_on_other_data(place: Path) -> None:
    data = {"source": str(place / "data.txt"), "section_characters": 100}
    said = run_recipe(
        place, "more", 1, task={"kind": "masked_lm"}, model={"from_run": str(place / "masked")}, data=data,
        optim={"name": "sgd", "lr": 1e-30},
    )  # fmt: skip
    assert "all weights loaded, none left over" in said
    before, after = open_run(place / "masked").model.state_dict(), open_run(place / "more").model.state_dict()
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-20) for name in before)


def test_the_pool_that_is_asked_for_is_trained_and_opened_again(place: Path) -> None:
    model = {"huggingface": str(place / "pretrained"), "pool": "mean", "dropout": 0.0}
    run_recipe(place, "pooled", model=model)
    opened = open_run(place / "pooled")
    assert opened.recipe.model.pool == "mean" and opened.recipe.model.layers == 1
    at_the_end = read_metrics(place / "pooled")[-1]["validation_loss"]
    assert evaluate_run(place / "pooled")["loss"].value == pytest.approx(at_the_end, rel=1e-6)


def test_the_recipe_of_a_run_trains_it_again(place: Path) -> None:
    """With all that was chosen written in it, the weights it began from as well."""
    run_recipe(place, "first", model={"huggingface": str(place / "pretrained")})
    train(load(Recipe, place / "first" / "recipe.yaml", [f"run.folder={place / 'again'}"]), display=Display(enabled=False))
    first, again = (open_run(place / name).model.state_dict() for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def damaged(folder: Path, place: Path, *, drop: str = "", **config: Any) -> str:
    """A copy of the pretrained folder without the weights that begin with `drop`, with other keys in its config.json."""
    write_pretrained(folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not drop or not k.startswith(drop)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(theirs))
    return str(folder)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "weights missing": ({"drop": "bert.encoder.layer.0.output."}, {}, "4 missing: bert.encoder.layer.0.output.LayerNorm.bias"),
    "another architecture": ({"model_type": "mamba"}, {}, "transformers has no mamba with a label head"),
    "no architecture at all": ({"model_type": "brain"}, {}, "transformers does not know it either"),
    "sizes that do not fit": ({"hidden_size": 32}, {}, "misshaped"),
    "another number of layers": ({}, {"layers": 3}, "model.layers: comes with model.huggingface and is 1 there, not 3"),
    "longer than it can read": ({}, {"context": 512}, "model.context: comes with model.huggingface and is 128 there, not 512"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_does_not_fit_is_named(name: str, place: Path, tmp_path: Path) -> None:
    damage, model, message = BAD[name]
    folder = damaged(tmp_path / "folder", place, **damage)
    with pytest.raises(InputError) as error:
        run_recipe(place, "bad", model={"huggingface": folder} | model)
    assert message in str(error.value)


def test_bad_starts_are_named(place: Path) -> None:
    masked = str(place / "masked")
    with pytest.raises(InputError, match="give one of them"):
        run_recipe(place, "bad", model={"from_run": masked, "huggingface": "x"})
    with pytest.raises(InputError, match="whose weights know its tokens"):
        run_recipe(place, "bad", model={"from_run": masked}, tokenizer={"vocab_size": 400})
    with pytest.raises(InputError, match="no such run"):
        run_recipe(place, "bad", model={"from_run": str(place / "nowhere")})

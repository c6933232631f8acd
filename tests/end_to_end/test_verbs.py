"""Every verb, as in the README."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli
from tests.end_to_end.shipped import write_data, write_pretrained
from zenspeed.config import load
from zenspeed.evaluate.score import Options
from zenspeed.recipe import Recipe
from zenspeed.runlog import read_metrics
from zenspeed.tasks.evaluate import Asked, evaluate_folder
from zenspeed.training import train


@pytest.fixture
def run(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> Path:
    cli("train", corpus, *tiny, "--set", "train.steps=30", "--set", "run.folder=out", "--set", "log.tensorboard=true")
    return tmp_path / "out"


def test_train_evaluate_generate(run: Path, cli: Cli, corpus: Path, tmp_path: Path) -> None:
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "environment.json",
        "loss.svg",
        "report.md",
        "samples.md",
        "tokenizer/tokenizer.json",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    records = read_metrics(run)
    train = [r["loss"] for r in records if "loss" in r]
    assert train[-1] < train[0] - 0.5
    assert load(Recipe, run / "recipe.yaml").train.steps == 30

    cli("evaluate", run, "--json", "figures.json")
    figures = {f["name"]: f for f in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    last = records[-1]
    assert figures["loss"]["value"] == pytest.approx(last["validation_loss"], rel=1e-6)
    assert figures["loss"]["low"] < figures["loss"]["value"] < figures["loss"]["high"]
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(figures["loss"]["value"]))

    held_out = tmp_path / "held_out.txt"
    held_out.write_text("A text of its own.\n\nAnd a second one, with 中文 in it.", encoding="utf-8")
    assert "bits_per_byte" in cli("evaluate", run, "--data", held_out).stdout
    # Several sources are domains, and documents have slices; the parts make up the whole.
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "One more text."}\n{"text": "And the last, which is a good deal longer."}\n', encoding="utf-8")
    found = evaluate_folder(run, Asked([str(held_out), str(other)], options=Options(slices=["length:30"])))
    parts = [f for f in found["figures"] if f["name"] == "loss" and f["slice"] == "data"]
    assert sum(f["n"] for f in parts) == found["n"] and len(parts) == 2
    assert {f["slice"] for f in found["figures"]} == {"all", "data", "length"}

    same = [cli("generate", run, "--prompt", "The ", "--max-tokens", "12", "--seed", "1").stdout for _ in range(2)]
    assert same[0] == same[1] and same[0].startswith("The ")
    assert cli("generate", run, "--prompt", "The ", "--max-tokens", "12", "--seed", "2").stdout != same[0]


def test_two_processes_read_the_same_and_learn_the_same(
    run: Path, cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path
) -> None:
    for name, more in (("two", ["--set", "parallel.zero=3"]), ("cut", ["--set", "train.micro_batch_size=1"])):
        cli("launch", "-n", "2", "train", corpus, *tiny, "--set", "train.steps=30", "--set", f"run.folder={name}", *more)
        ours, reference = ([r["loss"] for r in read_metrics(f) if "loss" in r] for f in (tmp_path / name, run))
        assert len(ours) == len(reference) == 30
        assert all(abs(a - b) < 1e-5 * b for a, b in zip(ours, reference, strict=True))
        ours_last, reference_last = read_metrics(tmp_path / name)[-1], read_metrics(run)[-1]
        assert ours_last["validation_loss"] == pytest.approx(reference_last["validation_loss"], rel=1e-5)
        assert (tmp_path / name / "samples.md").read_text().partition("\n")[2].strip()  # rank 0 alone, from whole weights


def test_a_text_file_is_enough(cli: Cli, tmp_path: Path, cache: Path, corpus: Path) -> None:
    """Nothing but a file and a time limit; it is kept, and not exceeded by much."""
    (tmp_path / "corpus.txt").write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    done = cli("train", "corpus.txt", "--set", "train.minutes=0.2", "--set", f"data.cache={cache}",
               "--set", "model.layers=1", "--set", "model.width=64")  # fmt: skip
    folder = next((tmp_path / "runs").iterdir())
    assert f"zenspeed resume {folder.relative_to(tmp_path)}" in done.stdout
    assert read_metrics(folder)[-1]["validation_loss"] < 7


def test_prepare_and_info(cli: Cli, corpus: Path, tiny: list[str]) -> None:
    assert "tokens to train on" in cli("prepare", corpus, *tiny).stdout
    info = cli("info").stdout
    assert "GFLOP/s" in info and "gloo" in info and "GPU training" in info


def test_help_lists_the_verbs(cli: Cli) -> None:
    text = cli("--help").stdout
    assert all(verb in text for verb in ("train", "resume", "evaluate", "generate", "prepare", "info", "launch"))


def train_start(folder: Path) -> Path:
    """A masked language model that another run begins from."""
    base = {
        "run": {"folder": str(folder / "start")},
        "task": {"kind": "masked_lm"},
        "data": {"source": str(write_data("masked_lm", folder, Recipe().task)), "section_characters": 300},
        "tokenizer": {"kind": "wordpiece"},
        "model": {"preset": "bert", "layers": 1, "width": 16, "heads": 2, "context": 128},
        "train": {"steps": 1},
        "log": {"tensorboard": False},
    }
    return train(load(Recipe, None, base=base)).folder


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_first_step_of_every_shipped_recipe_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On data of the kind that its task needs; what else it names, such as pretrained weights, is replaced by small ones."""
    monkeypatch.chdir(tmp_path)
    recipe = load(Recipe, path)
    sets = [
        "train.steps=1",
        "run.folder=out",
        f"data.source={write_data(recipe.task.kind, tmp_path, recipe.task)}",
        "data.validation=0.1",
        "data.test=null",
        f"data.cache={tmp_path / 'cache'}",
        "data.section_characters=1000",
        "sample.max_tokens=2",
        "log.tensorboard=false",
    ]
    if recipe.model.huggingface is not None:
        sets.append(f"model.huggingface={write_pretrained(tmp_path / 'pretrained')}")
    elif recipe.model.from_run is not None:
        sets.append(f"model.from_run={train_start(tmp_path)}")
    else:
        sets.append("tokenizer.vocab_size=null")
    train(load(Recipe, path, sets))
    assert read_metrics(tmp_path / "out")[0]["step"] == 1


def test_samples_end_where_learned_positions_do(corpus: Path, cache: Path, tmp_path: Path) -> None:
    """The samples of a default recipe are longer than a context of 32: they are no reason to end a run with an error."""
    sets = ["model.preset=gpt2", "model.layers=1", "model.width=16", "model.heads=1", "model.context=32", "train.steps=1",
            "tokenizer.vocab_size=320", f"data.cache={cache}", f"run.folder={tmp_path / 'out'}", "log.tensorboard=false",
            "sample.prompts=['', 'The list of']"]  # fmt: skip
    folder = train(load(Recipe, None, sets, base={"data": {"source": str(corpus)}})).folder
    assert "The list of" in (folder / "samples.md").read_text(encoding="utf-8")

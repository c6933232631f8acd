"""The commands of docs/dial.md, in their order, in the shortest time; the run that comes of it; a run that is too short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from zenspeed.cli import app
from zenspeed.config import load
from zenspeed.dial.choose import Chosen
from zenspeed.dial.places import Place
from zenspeed.dial.rate import Rate
from zenspeed.errors import InputError
from zenspeed.recipe import Recipe
from zenspeed.training import train

PAGE = (Path(__file__).parents[2] / "docs" / "dial.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text, a recipe, and a clock that says that six of ten seconds are over: less to train."""
    text = corpus.read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("data: {source: corpus.txt}\nmodel: {layers: 1}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rate = Rate(token=1e-5, flop=2e-11, weight=1e-9, muon=2e-11)
    monkeypatch.setattr("zenspeed.dial.places.measure", lambda *_: rate)
    for module in ("zenspeed.dial.choose", "zenspeed.machine"):
        monkeypatch.setattr(f"{module}.process_age_seconds", lambda: 6.0)
    return tmp_path


def test_commands_run(folder: Path, cache: Path) -> None:
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        words = shlex.split(re.sub(r"--budget \S+", "--budget 10s", command))[1:]
        more = [f"data.cache={cache}", "log.tensorboard=false", "sample.max_tokens=2"]
        words += ["--set", "train.steps=3"] if "train.steps=20" in words else []
        words += [part for key in more for part in ("--set", key)]
        if "--target-loss" in words:
            words[words.index("--target-loss") + 1] = "6"
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        if "train.steps=20" not in command:
            assert all(name in done.output for name in ("machine  ", "text  ", "model  ", "batch  ", "time  ", "were expected"))
        if "--target-loss" in words:
            assert re.search("target +6 was reached", done.output)
    mine, again = (yaml.safe_load((folder / "runs" / name / "recipe.yaml").read_text()) for name in ("mine", "again"))
    assert mine["model"]["width"] == 96 and mine["train"]["minutes"] == pytest.approx(10 / 60, abs=1e-4)
    assert again["model"] == mine["model"] and again["train"]["steps"] == 3


def test_the_run_is_started_in_as_many_processes_as_are_fastest(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a target that the first evaluation reaches, so that all of it ends early."""

    def two(own: Place, *_: object) -> tuple[Place, str]:
        return own._replace(processes=2, threads=1, lanes=1, start_seconds=1.0), "processes  two"

    monkeypatch.setattr("zenspeed.dial.choose.best_place", two)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = "train corpus.txt --target-loss 7.9 --set run.folder=runs/two --set sample.prompts=[] --set log.tensorboard=false"
    done = CliRunner().invoke(app, [*words.split(), "--set", f"data.cache={cache}"], catch_exceptions=False)
    said = capfd.readouterr().out
    assert done.exit_code == 0, done.output + said
    assert "processes  two" in done.output and re.search("target +7.9 was reached after", done.output)
    assert "runs/two · 2 × 1 threads in 1 lanes" in said and (folder / "runs" / "two" / "report.json").exists()


def test_a_run_ends_when_its_target_is_reached_for_certain(
    corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "model.layers=1", "model.width=32", "model.heads=1", "model.context=32", "tokenizer.vocab_size=320", "evaluate.every=0",
        "train.precision=fp32", "train.steps=40", "sample.prompts=[]", "log.tensorboard=false", f"data.source={corpus}",
        f"data.cache={cache}", f"run.folder={tmp_path / 'run'}", "train.target_loss=7.9",
    ]  # fmt: skip
    result = train(load(Recipe, None, keys))
    assert 1 <= result.step < 40 and not result.interrupted
    said = " ".join(capsys.readouterr().out.split())
    assert "7.9 bits per byte are reached for certain" in said and f"training ends with update {result.step}" in said
    assert (result.folder / "report.html").exists()


def test_what_stops_a_run_in_several_processes_stops_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C to the launcher is 130, and an error its own code."""
    from zenspeed.cli.dial import _launched

    chosen = Chosen(load(Recipe, None, ["run.folder=runs/mine"]), [], 2.0, 100.0, 2)
    for code in (130, 7):
        monkeypatch.setattr("zenspeed.launch.train.supervise", lambda *_, code=code, **__: code)
        if code == 130:
            assert _launched(chosen).interrupted
        else:
            with pytest.raises(typer.Exit) as ended:
                _launched(chosen)
            assert ended.value.exit_code == code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train corpus.txt --budget 10bananas", r"--budget 10bananas: is no time; give a number with a unit"),
        ("train corpus.txt --budget 2s", r"--budget 2s: nothing can be trained in 2 s"),
        ("train corpus.txt --set train.minutes=0.01", r"train.minutes: nothing can be trained in 0.6 s"),
        ("train corpus.txt --budget 1m --set train.steps=4", r"train.steps \(4\) and a budget both end the run"),
        ("train corpus.txt --budget 1m --task classification", r"--budget: is for language models; --task chooses"),
        ("train corpus.txt --memory 2 --text review", r"--memory: is for language models; --text chooses"),
        ("train none.txt --budget 1m", r"none.txt: no such file"),
        ("train corpus.txt --target-loss 0.1", r"--target-loss 0.1: out of reach"),
        ("train corpus.txt --budget 30s --max-parameters 1k", r"--max-parameters: 1,000 are too few: the smallest model has"),
    ],
)
def test_bad_input(words: str, message: str, folder: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, [*shlex.split(words), "--set", f"data.cache={cache}"], catch_exceptions=False)
    assert not (folder / "runs").exists()

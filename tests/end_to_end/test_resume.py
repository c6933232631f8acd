"""A run that is killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.end_to_end.conftest import Cli, command, environment
from zenspeed.checkpoint import Checkpoint, find_checkpoint
from zenspeed.runlog import read_metrics

STEPS = 60
EXACT = ("step", "loss", "lr", "grad_norm", "tokens")


def kill_at(step: int, folder: Path, arguments: list[str], cwd: Path) -> bool:
    """Starts a command, kills it with -9 once `step` is logged; false if it ended before."""
    process = subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"loss"') >= step:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def losses(folder: Path) -> list[tuple[float, ...]]:
    return [tuple(r[k] for k in EXACT) for r in read_metrics(folder) if "loss" in r]


@pytest.mark.parametrize(("precision", "kills"), [("fp32", 10), ("bf16", 4)])
def test_killed_and_resumed_equals_uninterrupted(
    precision: str, kills: int, cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path
) -> None:
    sets = [*tiny, "--set", f"train.steps={STEPS}", "--set", "checkpoint.every=4", "--set", f"train.precision={precision}",
            "--set", "model.dropout=0.1", "--set", "optim.weight_decay=0.1", "--set", "evaluate.every=10"]  # fmt: skip
    cli("train", corpus, *sets, "--set", "run.folder=whole")
    cut = tmp_path / "cut"
    rng = random.Random(precision)
    points = sorted(rng.sample(range(5, STEPS - 1), kills))
    start = ["train", str(corpus), *sets, "--set", "run.folder=cut"]
    for point in points:
        assert kill_at(point, cut, start, tmp_path), "the run ended before it was killed"
        start = ["resume", "cut"]
    cli("resume", "cut")

    assert losses(cut) == losses(tmp_path / "whole")
    assert [r["step"] for r in read_metrics(cut) if "loss" in r] == list(range(1, STEPS + 1))
    whole, resumed = (Checkpoint(find_checkpoint(folder)) for folder in (tmp_path / "whole", cut))
    assert resumed.scalars == whole.scalars
    assert resumed.keys() == whole.keys()
    for name, kind in sorted(whole.keys()):
        size = whole.shapes[name].numel()
        a, b = whole.read(name, kind, 0, size), resumed.read(name, kind, 0, size)
        assert a is not None and b is not None
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), (name, kind)


def test_resume_on_other_ranks_goes_on_with_the_same_samples(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    sets = [*tiny, "--set", "checkpoint.every=10", "--set", "checkpoint.keep=9", "--set", "parallel.zero=2"]
    cli("train", corpus, *sets, "--set", "train.steps=30", "--set", "run.folder=whole")
    cli("launch", "-n", "2", "train", corpus, *sets, "--set", "train.steps=30", "--set", "run.folder=two")
    cli("resume", "two", "--checkpoint", "step-00000010", "--set", "parallel.zero=0")
    ours, reference = losses(tmp_path / "two"), losses(tmp_path / "whole")
    assert len(ours) == len(reference) == 30
    assert all(abs(a[1] - b[1]) < 1e-5 * b[1] for a, b in zip(ours, reference, strict=True))


def test_interrupt_saves_and_says_how_to_go_on(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    sets = [*tiny, "--set", "train.steps=100000", "--set", "run.folder=long"]
    process = subprocess.Popen(
        command("train", corpus, *sets),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "long" / "metrics.jsonl").exists() or not read_metrics(tmp_path / "long"):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "zenspeed resume long" in output
    step = Checkpoint(find_checkpoint(tmp_path / "long")).step
    assert step == read_metrics(tmp_path / "long")[-1]["step"] > 0
    cli("resume", "long", "--set", f"train.steps={step + 3}")
    assert read_metrics(tmp_path / "long")[-1]["step"] == step + 3


def test_the_same_command_starts_a_run_and_goes_on_with_it(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    """What a job says that is started anew after a failure."""
    start = ["train", corpus, *tiny, "--resume", "--set", "run.folder=run"]
    cli(*start, "--set", "train.steps=3")
    cli(*start, "--set", "train.steps=5")
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "loss" in r] == [1, 2, 3, 4, 5]
    assert "run.folder: is not given" in cli("train", corpus, *tiny, "--resume", code=2).stderr

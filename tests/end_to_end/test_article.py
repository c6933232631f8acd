"""The article's listings, as examples/article has them, on real labelled text: losses fall, accuracy beats guessing."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "article"
TRAIN_ROWS = 640
"""Sentences to train on; all of them would take a minute."""


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples with their data, and fewer rows of it."""
    path = tmp_path_factory.mktemp("article") / "article"
    shutil.copytree(EXAMPLES, path, ignore=shutil.ignore_patterns("*.csv", "tiny-bert", "__pycache__"))
    assert "commoner label" in run(path, "prepare.py")
    rows = list(csv.reader((path / "train_data.csv").open(newline="", encoding="utf-8")))
    assert rows[0] == ["text", "label"] and len(rows) == 3201
    assert len({tuple(row) for row in rows}) == len(rows)
    with (path / "train_data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows[: TRAIN_ROWS + 1])
    return path


@pytest.fixture(scope="module")
def majority(folder: Path) -> float:
    """Accuracy of always answering the commoner label."""
    with (folder / "test_data.csv").open(newline="", encoding="utf-8") as file:
        labels = Counter(row["label"] for row in csv.DictReader(file))
    return max(labels.values()) / sum(labels.values())


def test_train(folder: Path, majority: float) -> None:
    printed = run(folder, "train.py", "tiny-bert")
    losses = [float(x) for x in re.findall(r"^Epoch \d, Loss: (\S+)$", printed, re.M)]
    assert len(losses) == 5 and losses[-1] < 0.7 * losses[0]
    accuracy = re.search(r"测试集准确率: (\S+)%", printed)
    assert accuracy is not None and float(accuracy[1]) / 100 > majority + 0.04
    assert (folder / "model.pth").stat().st_size > 100_000


def test_mixed_precision(folder: Path, majority: float) -> None:
    _check(run(folder, "mixed_precision.py"), majority, ranks=1)


def test_distributed(folder: Path, majority: float) -> None:
    _check(run(folder, "-m", "zenspeed", "launch", "-n", "2", "distributed.py"), majority, ranks=2)


def _check(printed: str, majority: float, ranks: int) -> None:
    for rank in range(ranks):
        mine = rf"rank {rank} epoch \d, loss: ([\d.]+)" if ranks > 1 else r"epoch \d, loss: ([\d.]+)"
        losses = [float(x) for x in re.findall(mine, printed)]
        assert len(losses) == 3 and losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    accuracies = {float(x) for x in re.findall(r"accuracy: (0\.\d{4})", printed)}
    assert len(accuracies) == 1 and accuracies.pop() > majority + 0.04


def test_data_are_honest(folder: Path) -> None:
    """No sentence is in both files."""
    files = [set((folder / f"{name}_data.csv").read_text(encoding="utf-8").splitlines()[1:]) for name in ("train", "test")]
    assert not files[0] & files[1]

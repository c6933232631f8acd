"""The commands of docs/evaluation.md run in their order, in one folder, on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.end_to_end.conftest import Cli
from tests.end_to_end.test_tasks import write
from zenspeed.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
SMALL = [
    "model={preset: bert, layers: 1, width: 32, heads: 2, context: 32}", "train.steps=10", "train.precision=fp32",
    "tokenizer.vocab_size=200", "tokenizer.kind=wordpiece", "optim.name=adamw", "log.tensorboard=false",
]  # fmt: skip


def test_commands_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    write(tmp_path / "reviews.csv", 90, 1)
    write(tmp_path / "more_reviews.csv", 30, 2)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) == 14
    for command in commands:
        words = shlex.split(command)
        small = [part for key in SMALL for part in ("--set", key)] if words[1] in ("train", "crossval") else []
        small += ["--folds", "2"] if words[1] == "crossval" else []
        if words[1] == "launch":  # processes of their own; the others need not import torch anew
            cli(*words[1:])
        else:
            done = CliRunner().invoke(app, [*words[1:], *small], catch_exceptions=False)
            assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "comparison.json").read_text())["schema"] == "zenspeed.comparison"
    assert json.loads((tmp_path / "folds" / "crossval.json").read_text())["pooled"]["n"] == 90
    for page in ("figures.html", "comparison.html", "labels/report.html", "folds/report.html"):
        assert (tmp_path / page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

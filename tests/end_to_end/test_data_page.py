"""The commands of docs/data.md, as they stand there."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zenspeed.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("reviews.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(
            [f"<p>Review {i}: a film of number {i * 37 % 101}, seen by me@example.org</p>", "yn"[i % 2]] for i in range(400)
        )
    printed = []
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        more = ["--set", "data.cache=cache", "--set", "model.context=32"] if words[0] == "prepare" else []
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        printed.append(result.output)
    assert len(printed) == 2
    assert "Suggested sequence length" in printed[0] and "<h1>" in Path("report.html").read_text(encoding="utf-8")
    assert "cleaned 400 texts: changed by markup 400, pii 400" in printed[1] and "<MAIL> 400" in printed[1]

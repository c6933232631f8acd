"""The commands of docs/explain.md, as they stand there, on a run; and what cannot be explained."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.end_to_end.conftest import TINY
from tests.end_to_end.shipped import write_data
from zenspeed.cli import app
from zenspeed.config import InputError, load
from zenspeed.display import Display
from zenspeed.recipe import Recipe
from zenspeed.training import train

PAGE = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", ["gpt", "lstm"])
def test_the_page(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_data("language_model", tmp_path, Recipe().task)
    sets = [
        *TINY,
        f"data.source={source}",
        f"data.cache={tmp_path}",
        "run.folder=out",
        "train.steps=1",
        f"model.preset={preset}",
    ]
    sets += ["tokenizer.vocab_size=null", "data.section_characters=500"]
    train(load(Recipe, None, sets), display=Display(enabled=False))
    commands = [shlex.split(line) for line in PAGE.split("```bash\n")[1].split("```")[0].splitlines()]
    assert len(commands) == 3 and all(command[:2] == ["zenspeed", "explain"] for command in commands)
    if preset == "lstm":
        done = CliRunner().invoke(app, commands[0][1:])
        assert isinstance(done.exception, InputError) and "is no Transformer that zenspeed has itself" in str(done.exception)
        return
    for command, part in zip(commands, ("every number: explained.html", "head 2: weights", "17 of the 17"), strict=True):
        done = CliRunner().invoke(app, command[1:])
        assert done.exit_code == 0 and part in done.output, done.output

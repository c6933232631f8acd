"""The files and commands of docs/answers.md, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zenspeed.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")


def test_commands_run_and_say_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S):
        Path(name).write_text(text, encoding="utf-8")
    said = {}
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S):
        for line in block.splitlines():
            done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
            assert done.exit_code == 0, (line, done.output)
            said[line] = done.output
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, {})
    answers = {line.split('"')[1]: out for line, out in said.items() if 'answer faq-index "' in line}
    assert answers["when do you open"].startswith("From nine to five")
    assert answers["who are you"].startswith("not found") and answers["who was Monet?"].startswith("not found")
    assert "string-methods" in next(out for line, out in said.items() if "search" in line)

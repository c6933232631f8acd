"""The commands of docs/reliability.md, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

from tests.end_to_end.conftest import command, environment

ROOT = Path(__file__).parents[2]


def test_commands_run(cache: Path, tmp_path: Path) -> None:
    for name in ("docs", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        words = [*shlex.split(line)[1:], "--set", f"data.cache={cache}"]
        done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    report = json.loads((tmp_path / "broken.json").read_text())
    assert report["kept"] == report["runs"] == 2
    assert [r["fault"]["kind"] for r in report["results"]] == ["kill", "gradient bit"]

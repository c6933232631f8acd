"""The commands of docs/clusters.md, as they stand there; worker-1 is this machine."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
FILES = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line.strip()]


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 4 and len(FILES) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=("machines", "slurm", "jobset", "pytorchjob"))
def test_commands_run(command: str, corpus: Path, tmp_path: Path) -> None:
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = shlex.split(command.replace("worker-1:29400", f"127.0.0.1:{port}"))
    small = ["model.layers=1", "model.width=16", "model.heads=2", "model.context=16", "tokenizer.vocab_size=300",
             "evaluate.every=0", "train.precision=fp32", f"data.source={corpus}"]  # fmt: skip
    if "--dry-run" not in words:
        words += [part for key in small for part in ("--set", key)]
    words[:1] = [sys.executable, "-m", "zenspeed"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    if "--dry-run" not in words:
        assert (tmp_path / "runs/mine/checkpoints/step-00000002").is_dir()

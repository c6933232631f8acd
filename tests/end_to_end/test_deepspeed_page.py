"""The files and commands of docs/deepspeed.md, as they stand there; machines are this one behind a stand-in for ssh."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "deepspeed.md").read_text(encoding="utf-8")
FILES = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift 3\nexec sh -c "$*"\n', encoding="utf-8")
    (tmp_path / "ssh").chmod(0o755)
    return tmp_path


def test_the_page_has_files_and_commands() -> None:
    assert {name for name, _ in FILES} == {"ds_config.json", "my_train.py", "hostfile"}
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS, ids=("python", "launch", "shim", "print", "ssh", "elastic"))
def test_commands_run(command: str, folder: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = shlex.split(command.replace("worker-1:29400", f"127.0.0.1:{port}").replace("worker-1", "127.0.0.1"))
    if "--hostfile" in words:
        words[2:2] = ["--master_port", str(port)]
    words[:1] = {"python": [sys.executable], "zenspeed": [sys.executable, "-m", "zenspeed"]}[words[0]]
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    machines = 2 if "--nnodes" in words else 1
    running = [
        subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(machines)
    ]
    printed = "".join(process.communicate(timeout=300)[0] for process in running)
    assert [process.returncode for process in running] == [0] * machines, printed
    if "my_train.py" in words:
        losses = {float(x) for x in re.findall(r"loss (\S+) after", printed)}
        ranks = 1 if words[0] == words[-4] or "launch" not in words else 2
        assert len(re.findall(r"rank \d: loss", printed)) == ranks, printed
        assert max(losses) < 1
        assert (folder / "checkpoints" / "latest").is_file()

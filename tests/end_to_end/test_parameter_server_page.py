"""The commands of docs/parameter-server.md, one of them while its server and a worker are killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import Cli, environment
from zenspeed.checkpoint import Checkpoint, find_checkpoint
from zenspeed.runlog import read_metrics

PAGE = (Path(__file__).parents[2] / "docs" / "parameter-server.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
STEPS = 40


@pytest.fixture
def folder(tmp_path: Path, corpus: Path, cache: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(
        f"""
data: {{source: {corpus}, cache: {cache}}}
model: {{layers: 2, width: 32, heads: 2, context: 32}}
tokenizer: {{vocab_size: 320}}
train: {{batch_size: 8, precision: fp32, steps: {STEPS}}}
optim: {{name: adamw, lr: 3.0e-3}}
evaluate: {{every: 0}}
sample: {{max_tokens: 8}}
log: {{tensorboard: false}}
""",
        encoding="utf-8",
    )
    return tmp_path


def begin(line: str, folder: Path) -> subprocess.Popen[str]:
    line = re.sub("^zenspeed", f"exec {shlex.quote(sys.executable)} -m zenspeed", line)
    return subprocess.Popen(
        ["sh", "-c", line], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    return printed


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def test_launched_workers_and_their_server_die_and_the_losses_are_those_of_data_parallel(folder: Path, cli: Cli) -> None:
    cli("launch", "-n", "2", "train", "recipe.yaml", "--set", "run.folder=parallel", timeout=240)
    launched = begin(COMMANDS[1], folder)
    try:
        while len(losses(folder / "two")) < 4:
            assert launched.poll() is None, launched.communicate()[0]
            time.sleep(0.02)
        children = psutil.Process(launched.pid).children()
        server = next(c for c in children if "parameter-server" in c.cmdline())
        worker = [c for c in children if "train" in c.cmdline()][-1]
        for victim in (server, worker):
            os.kill(victim.pid, signal.SIGKILL)
    finally:
        printed = finish(launched)
    assert "it is started again" in printed and "came back at version" in printed and "run      two" in printed
    ours, reference = losses(folder / "two"), losses(folder / "parallel")
    assert len(ours) == len(reference) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, reference, strict=True)) < 1e-6
    saved = Checkpoint(find_checkpoint(folder / "two")).keys()
    assert {kind for _, kind in saved} == {"weight", "exp_avg", "exp_avg_sq"}


def test_a_server_by_hand_and_a_run_that_is_resumed(folder: Path) -> None:
    """And gone on with by servers of its own, in the other kind of consistency."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    finish(begin(COMMANDS[2], folder))
    server, worker = (line.replace("7000", port) for line in COMMANDS[3:])
    serving = begin(server, folder)
    finish(begin(worker, folder))
    assert serving.wait(timeout=60) == 0
    more = "--set train.steps=48 --set parallel.server.addresses=[] --set parallel.server.consistency=local"
    finish(begin(f"zenspeed launch -n 2 resume three {more}", folder))
    steps = [record["step"] for record in read_metrics(folder / "three") if "loss" in record]
    assert steps == [*range(1, STEPS + 1), 48]
    assert losses(folder / "three")[-1] < losses(folder / "three")[0] - 0.5


def test_commands_are_those_tested() -> None:
    assert [line.split(" ")[1] for line in COMMANDS] == ["train", "launch", "rand", "parameter-server", "train"]

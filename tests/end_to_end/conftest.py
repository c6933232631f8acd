"""The command line as a user types it: real processes, real text, a model small enough to train in a second."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import psutil
import pytest

from zenspeed.health import FOLDER, read_beat

TINY = [
    "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "tokenizer.vocab_size=320",
    "train.batch_size=8", "train.precision=fp32", "evaluate.every=0", "sample.max_tokens=8", "log.tensorboard=false",
]  # fmt: skip

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "topics.txt"
    path.write_text("\n\n".join(list(topics.values())[:12]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(cache: Path) -> list[str]:
    """--set options of a model that trains in a second."""
    return [part for key in [*TINY, f"data.cache={cache}"] for part in ("--set", key)]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs `zenspeed …` in an empty folder and gives its exit code and output."""

    def run(
        *arguments: str | Path, code: int | None = 0, timeout: float = 120, **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment() | more, capture_output=True, text=True, timeout=timeout
        )
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "zenspeed", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def hold_at(run: Path, rank: int, step: int) -> None:
    """Holds (SIGSTOP) a rank in a step, `step` or a later one: the process that writes its beats.

    Not in its first steps, which may take as long as a start.
    """
    beats = run / FOLDER / f"rank-{rank:05d}.beat"
    while True:
        time.sleep(0.002)
        beat = read_beat(beats.parent, rank)
        if beat.step < step or beat.phase != "step" or beat.number < 12:
            continue
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (str(beats), "w") in [(file.path, file.mode) for file in process.open_files()]:
                    process.send_signal(signal.SIGSTOP)
                    if read_beat(beats.parent, rank).phase == "step":
                        return
                    process.send_signal(signal.SIGCONT)  # it had gone on meanwhile

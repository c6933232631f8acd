"""`zenspeed launch -n N train …` and `resume …` on one machine: the processes of a run that is kept going."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from zenspeed.config import load
from zenspeed.errors import InputError, missing
from zenspeed.launch.supervise import WANTED, Keep, Supervisor, signals_to
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe, fresh_folder

LAST_LINES = 20


class Child:
    """A rank as a process of its own; its error stream is shown as it comes and its end is kept."""

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        # A session of its own: Ctrl-C reaches the launcher alone, which then stops all in order.
        self._process = subprocess.Popen(
            command, env=os.environ | variables, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
        self.pid = self._process.pid
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line.rstrip())
            sys.stderr.write(line)
            sys.stderr.flush()

    def poll(self) -> int | None:
        return self._process.poll()

    def last_words(self) -> list[str]:
        self._reader.join(timeout=1.0)
        return [line for line in self._lines if line]


def supervise(num_processes: int, verb: str, arguments: Sequence[str], least: int, restarts: int) -> int:
    """Runs `zenspeed train …` or `resume …` on `num_processes` ranks and keeps it going; the exit code."""
    recipe, folder, more = _run_of(verb, arguments)
    if num_processes > recipe.train.batch_size:
        raise InputError(
            f"train.batch_size: {recipe.train.batch_size} sequences cannot be shared by {num_processes} ranks; take "
            f"{num_processes} or more, or fewer ranks"
        )
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": ""}

    def start(rank: int, size: int, port: int, go_on: bool) -> Child:
        again = ["resume", str(folder), *_sets(arguments)] if verb == "resume" and restarted[0] else [verb, *arguments, *more]
        if verb == "train" and go_on and restarted[0]:
            again.append("--resume")
        restarted[0] = restarted[0] or rank == size - 1
        for name in threads:
            threads[name] = str(max(1, usable_cores() // size))
        return Child([sys.executable, "-m", "zenspeed", *again], variables(rank, size, port) | threads)

    restarted = [False]
    multiple = recipe.parallel.shard_ranks or 1
    keep = Keep(least=least, multiple=multiple, restarts=restarts, deadlines=recipe.guard)
    job = Supervisor(folder, start, keep, lambda message: print(message, file=sys.stderr, flush=True))
    with signals_to(job):
        return job.run(num_processes)


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torch.distributed reads of a process's environment."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _run_of(verb: str, arguments: Sequence[str]) -> tuple[Recipe, Path, list[str]]:
    """Recipe and folder of the run that `arguments` speak of, and what to add to them so that all starts mean the same one."""
    source = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if verb == "resume":
        if source is None:
            raise InputError("launch resume: expected the folder of a run")
        folder = Path(source)
        kept = folder / "recipe.yaml"
        return load(Recipe, kept if kept.is_file() else None, _sets(arguments)[1::2]), folder, []
    recipe = _recipe(source, arguments)
    if recipe.run.folder is not None:
        return recipe, recipe.run.folder, []
    folder = fresh_folder(recipe)
    return recipe, folder, ["--set", f"run.folder={folder}"]


def _recipe(source: str | None, arguments: Sequence[str]) -> Recipe:
    sets = _sets(arguments)[1::2]
    if source is not None and source.endswith((".yaml", ".yml")):
        return load(Recipe, Path(source), sets)
    return load(Recipe, None, sets, base={"data": {"source": source}} if source else {})


def _sets(arguments: Sequence[str]) -> list[str]:
    """The --set options among `arguments`."""
    out: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--set" and index + 1 < len(arguments):
            out += ["--set", arguments[index + 1]]
        elif argument.startswith("--set="):
            out += ["--set", argument.removeprefix("--set=")]
    return out


def scale(folder: Path, num_processes: int) -> None:
    """Asks the launcher of the run in `folder` to go on with another number of processes."""
    if not folder.is_dir():
        raise missing(folder, "run")
    (folder / WANTED).write_text(str(num_processes), encoding="utf-8")

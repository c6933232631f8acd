"""Watches processes of this machine that others start anew: torch elastic (the launcher watches) or Ray (`beside`).

A rank that is too long in a phase is one that hangs, or waits for one. All write their stacks; who is waited for, here or on
another machine that shares the run's folder, is told with the line where it is. It is killed by who watches its machine, as if
it had died: what follows is what torch elastic or Ray do then. On one machine alone supervise.py does the same, and more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from zenspeed.config import validate
from zenspeed.health import FOLDER, Frame, is_stopped, place, read_beat, read_stack, waited_for
from zenspeed.launch.beats import Beats, Late
from zenspeed.recipe import GuardConfig
from zenspeed.runlog import make_folder, note

LOOK_SECONDS = 0.25
STACKS_SECONDS = 1.0
"""From the request until a stack is taken for written."""
OTHERS_SECONDS = 2.0
"""How much later than here it may be noticed on another machine."""


class Here(NamedTuple):
    """Processes of this machine: rank -> pid; `size`: ranks on all machines, 0 where each works for itself."""

    pids: Mapping[int, int]
    size: int


class Watch:
    """Watches the processes that `here` names, of the run in `run`."""

    def __init__(self, run: Path, limits: GuardConfig, here: Callable[[], Here]) -> None:
        self.run, self.health, self.here = run, run / FOLDER, here
        make_folder(self.health)
        self.beats = Beats(self.health, limits)
        self._pids: dict[int, int] = {}

    def look(self) -> None:
        """Looks once, and ends what hangs."""
        pids, size = self.here()
        for rank, pid in pids.items():
            if self._pids.get(rank) != pid:
                self.beats.follow(rank)
        self._pids = dict(pids)
        if late := self.beats.late(list(pids)):
            self._hung(late, size)
            for rank in pids:  # those that go on are not to be found late again at once
                self.beats.follow(rank)

    def _hung(self, late: Sequence[Late], size: int) -> None:
        stopped = ask_for_stacks(self._pids)
        time.sleep(STACKS_SECONDS + (OTHERS_SECONDS if size > len(self._pids) else 0.0))
        kept = keep_stacks(self.run, self.health)
        if size:
            ranks = range(size)
            stacks = {rank: read_stack(self.health, rank) for rank in ranks}
            beats = {rank: read_beat(self.health, rank) for rank in ranks}
            lost = waited_for(beats, {rank: stack for rank, stack in stacks.items() if stack}, stopped)
        else:
            lost = [each.rank for each in late]
            stacks = {rank: read_stack(self.health, rank) for rank in lost}
        why = f"no rank went on {late[-1]}; the ranks wait for {named(lost, stacks)} (stacks: {kept})"
        note(self.run, "hung", why=why)
        print(why, file=sys.stderr, flush=True)
        for rank, pid in self._pids.items():
            if rank in lost or not lost:  # where none is at fault, as when a network is cut, all begin anew
                send(pid, signal.SIGKILL)


def ask_for_stacks(pids: Mapping[int, int]) -> set[int]:
    """Has processes write their stacks; the ranks that are held by SIGSTOP, which may go on for a moment to do so."""
    stopped = {rank for rank, pid in pids.items() if _stopped(pid)}
    for pid in pids.values():
        send(pid, signal.SIGUSR1)
    for rank in stopped:
        send(pids[rank], signal.SIGCONT)
        time.sleep(0.05)
        send(pids[rank], signal.SIGSTOP)
    return stopped


def named(lost: Sequence[int], stacks: Mapping[int, list[Frame]]) -> str:
    """Who is waited for, and where."""
    each = [f"rank {rank} at {place(stacks.get(rank, []))}" for rank in lost]
    return " and ".join(each) or "each other: no rank is at fault by itself"


def keep_stacks(run: Path, health: Path) -> Path:
    """Puts the stacks that processes wrote where they stay."""
    kept = run / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}"
    kept.mkdir(exist_ok=True)
    for file in health.glob("*.stack"):
        shutil.copy(file, kept / f"{file.stem}.txt")
    return kept


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stopped(pid: int) -> bool:
    try:
        return is_stopped(psutil.Process(pid))
    except psutil.Error:
        return False


# Who watches -----------------------------------------------------------------------------------------------------------


def children() -> Here:
    """The ranks that this process has started."""
    pids, size = {}, 1
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, KeyError):  # gone, or not begun
            variables = child.environ()
            pids[int(variables["RANK"])], size = child.pid, int(variables["WORLD_SIZE"])
    return Here(pids, size)


@contextlib.contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """A thread looks for the length of a `with` block."""
    over = threading.Event()

    def loop(watch: Watch) -> None:
        while not over.wait(LOOK_SECONDS):
            watch.look()

    if watch is not None:
        threading.Thread(target=loop, args=(watch,), daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def beside(run: Path, limits: GuardConfig, rank: int, size: int) -> Iterator[None]:
    """A process beside this one watches it, since one that hangs cannot; it ends when this one does."""
    make_folder(run / FOLDER)
    what = [str(run), str(rank), str(os.getpid()), str(size), limits.model_dump_json()]
    with subprocess.Popen([sys.executable, "-m", "zenspeed.launch.watch", *what]) as process:
        try:
            yield
        finally:
            process.kill()


def main(run: str, rank: str, pid: str, size: str, limits: str) -> None:
    watch = Watch(Path(run), validate(GuardConfig, json.loads(limits)), lambda: Here({int(rank): int(pid)}, int(size)))
    while os.getppid() == int(pid):
        watch.look()
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])

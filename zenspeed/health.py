"""What a process of a run tells of itself, and how the process that others wait for is found.

    <run>/health/rank-00000.beat    its phase, its step, and a count that grows with every beat: one small write a phase
    <run>/health/rank-00000.stack   the stacks of its threads, written when it gets SIGUSR1, whatever it is stuck in

Beats hold no time: who watches counts from when it last saw one change, on its own monotonic clock, so that no clock of
another host and no jump of one matters. A process beats where it goes on with its work, never from a thread of its own, which
would beat on while the work hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "health"
WAITING = re.compile(r"/torch/distributed/|/zenspeed/parallel/exchange\.py|/multiprocessing/|/threading\.py")
"""Files in which a process waits for others."""
OURS = re.compile(r"/zenspeed/")


class Beat(NamedTuple):
    """How far a process is. `number` grows with every beat."""

    number: int
    step: int
    phase: str


class Pulse:
    """Writes the beats of one process; without a folder, none."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._count, self._step, self._phase = 0, 0, "start"
        self._file: int | None = None
        if folder is None or not folder.is_dir():
            return
        self._file = os.open(folder / f"rank-{rank:05d}.beat", os.O_CREAT | os.O_WRONLY, 0o644)
        # Stays open as long as the process lives: the handler writes without asking Python.
        self._stack = (folder / f"rank-{rank:05d}.stack").open("w", encoding="utf-8")
        self._stack.write(f"trains in 0x{threading.get_ident():016x}\n")  # Ray has it in a thread of its own
        self._stack.flush()
        faulthandler.register(signal.SIGUSR1, file=self._stack, all_threads=True)

    def beat(self, phase: str, step: int) -> None:
        """Says that `phase` begins. Never fails: a full disk must not end the run by this."""
        self._count, self._step, self._phase = self._count + 1, step, phase
        if self._file is not None:
            line = f"{self._count:012d} {step:012d} {phase:<12}\n".encode()
            with contextlib.suppress(OSError):
                os.pwrite(self._file, line, 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_beat(folder: Path, rank: int) -> Beat:
    """The last beat of `rank`; before its first one, that it starts."""
    try:
        count, step, phase = (folder / f"rank-{rank:05d}.beat").read_text(encoding="utf-8").split()
        return Beat(int(count), int(step), phase)
    except (OSError, ValueError):
        return Beat(0, 0, "start")


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def main_stack(text: str) -> list[Frame]:
    """The frames of the thread that trains, or else of the main thread, in the last dump of `text`, innermost first."""
    blocks = re.findall(r"^(?:Current thread|Thread) (0x\w+).*\n((?:  .*\n?)*)", text, flags=re.M)
    trains = re.match(r"trains in (0x\w+)", text)
    chosen = next(
        (lines for ident, lines in reversed(blocks) if trains and ident == trains[1]), blocks[-1][1] if blocks else ""
    )
    frames = re.findall(r'File "(.+)", line (\d+) in (.+)$', chosen, flags=re.M)
    return [Frame(file, int(line), function) for file, line, function in frames]


def read_stack(folder: Path, rank: int) -> list[Frame]:
    try:
        return main_stack((folder / f"rank-{rank:05d}.stack").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def place(stack: list[Frame]) -> Frame | None:
    """The innermost line of zenspeed's, or of the user's where there is none."""
    return next((f for f in stack if OURS.search(f.file)), stack[0] if stack else None)


def waited_for(beats: Mapping[int, Beat], stacks: Mapping[int, list[Frame]], stopped: set[int]) -> list[int]:
    """The ranks that the others wait for, when none goes on: a stopped one; else who is not waiting itself; else who is behind.

    None where all wait alike, as they do when the network between them is cut.
    """
    if stopped:
        return sorted(stopped)
    busy = [rank for rank, stack in stacks.items() if stack and not any(WAITING.search(f.file) for f in stack[:4])]
    if busy and len(busy) < len(stacks):
        return busy
    most = max(beats.values(), key=lambda b: (b.step, b.number))
    behind = [rank for rank, beat in beats.items() if beat.step < most.step]
    return behind if len(behind) < len(beats) else []


def is_stopped(process: Any) -> bool:
    """Whether a psutil process is held by SIGSTOP or a debugger."""
    import psutil

    try:
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    except psutil.Error:
        return False

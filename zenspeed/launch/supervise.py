"""Keeps a training run going on one machine: watches its processes, and starts it anew on those that are left.

    start ranks ─→ watch ─┬─ all ended well ─────────────────────────────────→ done
         ↑                ├─ one died ────→ end the others ──┐
         │                ├─ none goes on → stacks of all, ──┤
         │                │   who is waited for is named     │
         │                └─ `zenspeed scale` → stop in order┤
         └── from the last good checkpoint, on the ranks left ┘

A process that was killed or hung is not started again; one that ended by an error of its own is. The global batch and the
order of its samples do not depend on how many are left.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zenspeed.checkpoint import list_checkpoints
from zenspeed.health import FOLDER, place, read_beat, read_stack, waited_for
from zenspeed.launch.beats import Beats
from zenspeed.launch.watch import STACKS_SECONDS, ask_for_stacks, keep_stacks, named, send
from zenspeed.recipe import GuardConfig
from zenspeed.rescue import assemble
from zenspeed.runlog import make_folder, note

WANTED = "ranks"
"""File in the run's folder with the number of processes that `zenspeed scale` asked for."""
ORDERLY = (2, 130)
"""Exit codes of processes that have said what is wrong, or were asked to stop: nothing to try again."""
FALL_SECONDS = 3.0
"""How long the others may take to end by themselves when one has died."""
STOP_SECONDS = 60.0


class Process(Protocol):
    """A process that was started, such as subprocess.Popen."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, −N where signal N ended it; None while it runs."""

    def last_words(self) -> list[str]:
        """The last lines of its error stream."""


Start = Callable[[int, int, int, bool], Process]
"""(rank, number of ranks, port where they meet, whether to go on from a checkpoint) -> the process."""


@dataclass(frozen=True)
class Keep:
    """How a job is kept going."""

    least: int = 1
    """Fewest processes to go on with."""
    multiple: int = 1
    """The number of processes must be divided by this (parallel.shard_ranks)."""
    restarts: int = 3
    """Failures in a row without a new checkpoint between them after which it is given up."""
    deadlines: GuardConfig = field(default_factory=GuardConfig)


@dataclass
class End:
    """How an attempt ended."""

    code: int
    why: str
    lost: list[int] = field(default_factory=list)
    """Ranks that are not started again."""
    words: list[str] = field(default_factory=list)
    scaled: bool = False


class Supervisor:
    """One run in `folder`, whose processes `start` starts."""

    def __init__(self, folder: Path, start: Start, keep: Keep, say: Callable[[str], None]) -> None:
        self.folder, self.start, self.keep, self.say = folder, start, keep, say
        self.asked: int | None = None  # a signal that was sent to us
        self.slowest = 0.0  # step, in seconds, of all attempts

    def run(self, size: int) -> int:
        """Runs the job to its end; the exit code."""
        folder = self.folder
        make_folder(folder)
        (folder / WANTED).unlink(missing_ok=True)
        failures, newest = 0, self._newest()
        while True:
            end = Attempt(self, size).watch()
            if end.code in (0, *ORDERLY) and not end.scaled:
                return end.code
            if (made := assemble(self.folder)) is not None:
                self._note("rescued", f"the state of {made.name} was put together from the ranks that were left", [])
            failures, newest = (0 if self._newest() != newest else failures), self._newest()
            if not end.scaled:
                failures += 1
            if failures > self.keep.restarts:
                self._note("given up", f"after {failures} failures without a new checkpoint: {end.why}", end.words)
                return end.code
            before, size = size, (self._wanted() or size) if end.scaled else self._fit(size - len(end.lost))
            if size < self.keep.least:
                self._note("given up", f"{end.why}; {size} ranks are left, at least {self.keep.least} are needed", end.words)
                return end.code
            self._note("restarted", f"{end.why}; on {size} of {before} ranks from {newest or 'the beginning'}", end.words)

    def _fit(self, left: int) -> int:
        return left // self.keep.multiple * self.keep.multiple

    def _wanted(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return max(1, int((self.folder / WANTED).read_text()))
        return None

    def scaled_to(self, size: int) -> bool:
        wanted = self._wanted()
        return wanted is not None and wanted != size

    def _newest(self) -> str | None:
        there = list_checkpoints(self.folder / "checkpoints")
        return there[-1].name if there else None

    def _note(self, event: str, why: str, words: list[str]) -> None:
        note(self.folder, event, why=why, **({"last_words": words} if words else {}))
        self.say("\n".join([f"{event}: {why}", *(f"  {line}" for line in words)]))


class Attempt:
    """One start of all processes."""

    def __init__(self, job: Supervisor, size: int) -> None:
        self.job, self.size = job, size
        self.health = job.folder / FOLDER
        shutil.rmtree(self.health, ignore_errors=True)
        self.health.mkdir()
        port, go_on = _free_port(), bool(list_checkpoints(job.folder / "checkpoints"))
        self.beats = Beats(self.health, job.keep.deadlines, job.slowest)
        for rank in range(size):
            self.beats.follow(rank)
        self.processes = [job.start(rank, size, port, go_on) for rank in range(size)]

    def watch(self) -> End:
        try:
            while True:
                codes = [process.poll() for process in self.processes]
                if all(code == 0 for code in codes):
                    return End(0, "done")
                if any(code not in (None, 0) for code in codes):
                    return self._died()
                if self.job.asked is not None or self.job.scaled_to(self.size):
                    return self._stop()
                if late := self._late():
                    return self._hung(late)
                time.sleep(0.02)
        finally:
            self._kill()

    def _late(self) -> str:
        """What is too long under way, or an empty string."""
        late = self.beats.late([rank for rank, process in enumerate(self.processes) if process.poll() is None])
        self.job.slowest = self.beats.slowest
        return f"no rank went on {late[-1]}" if late else ""

    # Ends -------------------------------------------------------------------------------------------------------------

    def _died(self) -> End:
        """One has died: the others fail by it, or are ended; who was first is told."""
        first = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]
        self._let_fall()
        codes = {rank: process.poll() for rank, process in enumerate(self.processes)}
        killed = [rank for rank, code in codes.items() if code is not None and code < 0]
        if killed:
            names = ", ".join(f"rank {rank} was ended by signal {-(codes[rank] or 0)}" for rank in killed)
            return End(128 - (codes[killed[0]] or 0), names, lost=killed)
        orderly = [rank for rank, code in codes.items() if code in ORDERLY]
        rank = orderly[0] if orderly else self._culprit(first)
        code = codes[rank] or 1
        return End(code, f"rank {rank} ended with code {code}", words=[] if orderly else self.processes[rank].last_words())

    def _let_fall(self) -> None:
        """Waits a little for the others to hear of it, and longer for those that then save what they hold."""
        began, ranks = time.monotonic(), range(len(self.processes))
        while alive := [rank for rank in ranks if self.processes[rank].poll() is None]:
            rescuing = any(read_beat(self.health, rank).phase == "rescue" for rank in alive)
            if time.monotonic() - began > (self.job.keep.deadlines.save_seconds if rescuing else FALL_SECONDS):
                return
            time.sleep(0.02)

    def _culprit(self, first: list[int]) -> int:
        """Of those that ended by an error, one that does not just tell that another has gone."""
        from zenspeed.launch.local import VICTIM

        failed = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]
        own = [r for r in failed if not any(VICTIM.search(line) for line in self.processes[r].last_words())]
        return next(iter(own or first))

    def _hung(self, why: str) -> End:
        """Nobody goes on: all write their stacks; who is waited for, and where, is told."""
        alive = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        stopped = ask_for_stacks({rank: self.processes[rank].pid for rank in alive})
        time.sleep(STACKS_SECONDS)
        stacks = {rank: read_stack(self.health, rank) for rank in alive}
        lost = waited_for({rank: self.beats.last[rank] for rank in alive}, stacks, stopped)
        lines = [f"rank {rank}{' (stopped)' if rank in stopped else ''}: {place(stacks[rank])}" for rank in alive]
        kept = keep_stacks(self.job.folder, self.health)
        if len(lost) < len(alive):  # the others hear that these are gone, and can save what they hold
            for rank in lost:
                send(self.processes[rank].pid, signal.SIGKILL)
            if lost:
                self._let_fall()
        # A rank is not blamed, and left out, for a network that is cut.
        return End(
            1, f"{why}; the ranks wait for {named(lost, stacks)} (stacks: {kept})", lost if len(lost) < self.size else [], lines
        )

    def _stop(self) -> End:
        """Asks all to save a checkpoint and end."""
        for process in self.processes:
            if process.poll() is None:
                send(process.pid, self.job.asked or signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until and any(p.poll() is None for p in self.processes):
            time.sleep(0.02)
        codes = [process.poll() for process in self.processes]
        code = 0 if all(c == 0 for c in codes) else 130
        return End(code, "another number of ranks is asked for", scaled=self.job.asked is None and code != 0)

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                send(process.pid, signal.SIGKILL)
        while any(p.poll() is None for p in self.processes):
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def signals_to(job: Supervisor) -> Iterator[None]:
    """Ctrl-C and SIGTERM to this process stop the job in order."""

    def ask(number: int, frame: object) -> None:
        job.asked = number

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Workers of a parameter server, and the servers beside them: `zenspeed launch -n N train …` with that `parallel.mode`.

No process group: a worker that dies takes nobody with it. It is started again where `--max-restarts` allows it; the others go
on in any case, and its share of the work is given to them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from zenspeed.errors import RolledBack
from zenspeed.health import FOLDER, place, read_stack
from zenspeed.launch.beats import Beats
from zenspeed.launch.watch import STACKS_SECONDS, ask_for_stacks, keep_stacks
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe
from zenspeed.runlog import make_folder, note


def launch_workers(num_workers: int, arguments: Sequence[str], recipe: Recipe, max_restarts: int = 0) -> int:
    """Runs `zenspeed train arguments` in `num_workers` processes around the servers of `recipe`; the exit code.

    0: a worker came to the end of the run.
    """
    from zenspeed.server.local import LocalServers
    from zenspeed.server.run import folder_of, settle

    recipe = settle(recipe, num_workers)
    server = recipe.parallel.server
    command = [sys.executable, "-m", "zenspeed", *arguments, *_set("run.folder", str(recipe.run.folder))]
    command += _set("parallel.server.shares", server.shares)
    if server.addresses:
        return _Crew(command, num_workers, max_restarts, recipe).run()
    while True:
        with LocalServers(server.count, folder_of(recipe), server.key_file) as servers:
            there = [part for address in servers.addresses for part in ("--server", address)]
            there += ["--server-key", str(servers.key_file)]
            code = _Crew([*command, *there], num_workers, max_restarts, recipe).run()
        if code != RolledBack.code:
            return code
        if arguments[0] == "train" and "--resume" not in command:
            command.append("--resume")


def _set(key: str, value: object) -> list[str]:
    return ["--set", f"{key}={json.dumps(value)}"]


GRACE_SECONDS = 10
"""From the end of the run until workers that have not noticed are ended."""


class _Crew:
    """The workers' processes. One that hangs writes its stack, and is ended as if it had died."""

    def __init__(self, command: Sequence[str], num_workers: int, max_restarts: int, recipe: Recipe) -> None:
        self.command, self.restarts_left = list(command), max_restarts
        assert recipe.run.folder is not None
        self.folder = recipe.run.folder
        health = self.folder / FOLDER
        make_folder(health)
        self.beats = Beats(health, recipe.guard)
        threads = str(max(1, usable_cores() // num_workers))
        self.environment = {"OMP_NUM_THREADS": threads} | os.environ
        self.workers = {number: self._spawn(number) for number in range(num_workers)}
        self.finished, self.finished_at, self.rolled_back = False, 0.0, False

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        self.beats.follow(number)
        return subprocess.Popen(self.command, env=self.environment | {"LOCAL_RANK": str(number)})

    def _end_hung(self) -> None:
        """The stack of a worker that does not go on is written and its line told; the others have what it was to do."""
        for late in self.beats.late(list(self.workers)):
            process = self.workers[late.rank]
            if process.poll() is not None or late.beat.number == 0:  # until the first worker has the data, others wait for it
                continue
            ask_for_stacks({late.rank: process.pid})
            time.sleep(STACKS_SECONDS)
            where = place(read_stack(self.beats.health, late.rank))
            kept = keep_stacks(self.folder, self.beats.health)
            why = f"worker {late.rank} did not go on {late}: {where} (stacks: {kept})"
            note(self.folder, "hung", why=why)
            print(why, file=sys.stderr, flush=True)
            process.send_signal(signal.SIGKILL)

    def run(self) -> int:
        """Waits for the workers. Ctrl-C reaches them as well, and they end in order; SIGTERM is passed on."""
        before = signal.signal(signal.SIGTERM, lambda *_: self._pass_on(signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 0
        try:
            while self.workers and not self.rolled_back:
                time.sleep(0.05)
                late = time.monotonic() - self.finished_at if self.finished else 0.0
                if late > GRACE_SECONDS:
                    self._pass_on(signal.SIGTERM)
                if late > 2 * GRACE_SECONDS:  # one that is held hears of nothing else
                    self._pass_on(signal.SIGKILL)
                self._end_hung()
                for number, process in list(self.workers.items()):
                    if process.poll() is not None:
                        code = self._ended(number, process.returncode) or code
        finally:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._pass_on(signal.SIGKILL)
        if self.rolled_back:  # the others wait for servers that have ended
            return RolledBack.code
        return 0 if self.finished else code

    def _ended(self, number: int, code: int) -> int:
        del self.workers[number]
        if code == 0:
            self.finished, self.finished_at = True, time.monotonic()
            return 0
        if code == 130:  # was asked to end, and has saved
            return code
        if code == RolledBack.code:
            self.rolled_back = True
        elif code == 2:  # it has said what the user can put right; the others meet the same
            self._pass_on(signal.SIGTERM)
            return code
        if self.rolled_back or self.finished:
            return 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        if self.restarts_left > 0:
            self.restarts_left -= 1
            print(f"worker {number} {how}; it is started again", file=sys.stderr, flush=True)
            self.workers[number] = self._spawn(number)
            return 0
        print(f"worker {number} {how}; {len(self.workers)} go on", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self.workers.values():
            if process.poll() is None:
                process.send_signal(number)

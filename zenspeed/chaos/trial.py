"""One run with one fault, and whether it keeps its promises: every step once, in order, with the losses of one process."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.chaos.faults import Fault
from zenspeed.chaos.network import FAULTS, Network
from zenspeed.chaos.ranks import ForkedRank, context, run_rank
from zenspeed.checkpoint import list_checkpoints
from zenspeed.health import FOLDER, read_beat
from zenspeed.launch.supervise import Keep, Supervisor
from zenspeed.launch.train import variables
from zenspeed.recipe import Recipe
from zenspeed.runlog import note, read_events, read_metrics

TOLERANCE = 1e-5
MOST_STARTS = 4
"""Starts of the launcher itself, as a person does when it ended in order."""
SLOWED = ("slow network", "network delay")
"""Faults that only take time: nobody may be started anew for them."""


class Curve(NamedTuple):
    """What a run came to: (step, samples read, loss) of each update, and the loss on held-out text at the end."""

    updates: list[tuple[int, int, float]]
    validation: float


def curve_of(folder: Path) -> Curve:
    records = read_metrics(folder)
    updates = [(r["step"], r["samples"], r["loss"]) for r in records if "loss" in r]
    return Curve(updates, next((r["validation_loss"] for r in reversed(records) if "validation_loss" in r), float("nan")))


class Trial:
    """One run in `folder`."""

    def __init__(self, recipe: Recipe, folder: Path, fault: Fault | None, there: Network | None = None) -> None:
        changes: dict[str, Any] = {
            "run": recipe.run.model_copy(update={"folder": folder, "name": folder.name, "storage": None})
        }
        if fault is not None and fault.kind == "weight bit":  # at other stages the next step makes copies anew
            changes["parallel"] = recipe.parallel.model_copy(update={"zero": 0})
        self.recipe, self.folder, self.fault = recipe.model_copy(update=changes), folder, fault
        self.network = there if fault is not None and fault.kind in FAULTS else None
        self.attempt = 0
        self.starts: list[float] = []  # when each attempt began
        self.struck: float | None = None
        self._pids: dict[int, int] = {}
        self._over = threading.Event()

    def run(self, ranks: int) -> int:
        """Runs the job until it is done; the last exit code."""
        self.folder.mkdir(parents=True)
        striker = threading.Thread(target=self._strike, daemon=True)
        striker.start()
        keep = Keep(deadlines=self.recipe.guard, restarts=3)
        code = 0
        for _ in range(MOST_STARTS):
            code = Supervisor(self.folder, self._start, keep, lambda message: None).run(ranks)
            if code == 0:
                break
        self._over.set()
        striker.join()
        return code

    def _start(self, rank: int, size: int, port: int, go_on: bool) -> ForkedRank:
        if rank == 0:
            self.attempt += 1
            self.starts.append(time.monotonic())
            if self.attempt > 1:
                self._while_down()
        settings = variables(rank, size, port)
        if self.network is not None:
            settings |= {"MASTER_ADDR": self.network.address(0), "GLOO_SOCKET_IFNAME": self.network.DEVICE}
        said = self.folder / f"rank-{rank}-{self.attempt}.txt"
        namespace = self.network.namespace(rank) if self.network is not None else None
        arguments = (self.recipe.model_dump(mode="json"), settings, go_on, said, self.fault, self.attempt == 1, namespace)
        started = ForkedRank(context().Process(target=run_rank, args=arguments), said)
        self._pids[rank] = started.pid
        return started

    # Faults from outside ----------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        """Waits for the step of the fault and lets it happen."""
        fault = self.fault
        if fault is None:
            return
        late = {"slow disk": 1, "nan batch": 2}.get(fault.kind, 0)
        beat = read_beat(self.folder / FOLDER, fault.rank)
        while beat.step < fault.step + late or beat.phase not in ("step", "save"):
            if self._over.wait(0.002):
                return
            beat = read_beat(self.folder / FOLDER, fault.rank)
        time.sleep(fault.delay)
        self.struck = time.monotonic()
        if self.network is not None:
            FAULTS[fault.kind](self.network, fault.rank)
        elif (number := _SIGNALS.get(fault.kind)) is not None:
            os.kill(self._pids[fault.rank], number)

    def _while_down(self) -> None:
        """What happens between two attempts."""
        if self.network is not None:
            self.network.heal()
        if self.fault is not None and self.fault.kind == "checkpoint bit" and self.attempt == 2:
            rng, there = random.Random(self.fault.seed), list_checkpoints(self.folder / "checkpoints")
            if len(there) > 1:  # of the only one nothing is promised: a run without a whole checkpoint ends and says so
                path = rng.choice(sorted(there[-1].iterdir()))
                content = bytearray(path.read_bytes())
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                path.write_bytes(content)
                note(self.folder, "bit flipped", checkpoint=there[-1].name, file=path.name)


_SIGNALS = {
    "kill": signal.SIGKILL,
    "slow disk": signal.SIGKILL,
    "checkpoint bit": signal.SIGKILL,
    "nan batch": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "stop": signal.SIGSTOP,
}


# Promises -------------------------------------------------------------------------------------------------------------


def broken_promises(trial: Trial, code: int, reference: Curve, ranks: int) -> list[str]:
    """What the run did not keep; an empty list when all is as promised."""
    if code != 0:
        return [f"ended with code {code}"]
    ours, steps = curve_of(trial.folder), len(reference.updates)
    wrong = []
    if [step for step, _, _ in ours.updates] != list(range(1, steps + 1)):
        wrong.append(f"steps are {[step for step, _, _ in ours.updates]}")
    if [samples for _, samples, _ in ours.updates] != [samples for _, samples, _ in reference.updates]:
        wrong.append("samples were read in another order")
    pairs = zip(ours.updates, reference.updates, strict=False)
    far = [a[0] for a, b in pairs if not _near(a[2], b[2])]
    if far:
        wrong.append(f"losses differ from step {far[0]} on")
    if not _near(ours.validation, reference.validation):
        wrong.append(f"loss at the end is {ours.validation}, not {reference.validation}")
    if trial.fault is not None and trial.fault.kind in SLOWED and trial.attempt > 1:
        wrong.append(f"was started {trial.attempt} times, for a network that is only slow")
    return wrong + _unsaid(trial, ranks)


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * abs(b) or (a != a and b != b)


def _unsaid(trial: Trial, ranks: int) -> list[str]:
    """What the log ought to say of the fault, and does not."""
    fault, events = trial.fault, read_events(trial.folder)
    if fault is None:
        return []
    said = " · ".join(str(event) for event in events)
    flipped = next((e["checkpoint"] for e in events if e["event"] == "bit flipped"), None)
    expected: dict[str, list[str]] = {
        "kill": [f"rank {fault.rank} was ended by signal 9"],
        "stop": [f"wait for rank {fault.rank} at"],
        "hang": [f"wait for rank {fault.rank} at", "zenspeed/chaos/faults.py"],
        "gradient bit": ["update blocked", "made at the second try"],
        "weight bit": ["copies of weights differ", f"'ranks': [{fault.rank}]" if ranks > 2 else "'ranks': [0, 1]"],
        "nan batches": ["update blocked", "rolled back"],
        "nan batch": ["update blocked", "loss is nan", "set aside"],
        "checkpoint bit": ["checkpoint skipped", flipped] if flipped else [],
        "network cut": ["no rank went on"],
    }
    return [f"the log does not say {words!r}" for words in expected.get(fault.kind, []) if words not in said]


def step_seconds(folder: Path, step: int) -> tuple[float, float] | None:
    """Medians of the steps before `step` and of those after it; None where there is none."""
    ends = [(r["step"], r["elapsed_seconds"]) for r in read_metrics(folder) if "loss" in r]
    took = [(number, end - begin) for (_, begin), (number, end) in pairwise(ends)]
    before, after = [s for number, s in took if number < step], [s for number, s in took if number > step]
    return (statistics.median(before), statistics.median(after)) if before and after else None


def recovery_seconds(trial: Trial) -> float | None:
    """From the fault until the processes were started anew; None where they were not."""
    after = [start for start in trial.starts if trial.struck is not None and start > trial.struck]
    return after[0] - trial.struck if after and trial.struck is not None else None

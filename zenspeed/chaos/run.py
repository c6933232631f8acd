"""`zenspeed chaos`: many runs of a small recipe, each with a fault drawn by seed; a table of which promises were kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zenspeed.chaos.faults import DATA, KINDS, Fault
from zenspeed.chaos.network import FAULTS, NEEDS, Network, can_have, network
from zenspeed.chaos.trial import SLOWED, Curve, Trial, broken_promises, curve_of, recovery_seconds, step_seconds
from zenspeed.config import write_atomically
from zenspeed.errors import InputError
from zenspeed.recipe import Recipe
from zenspeed.runlog import read_events

LEAST_STEPS = 12


def chaos(
    recipe: Recipe, folder: Path, runs: int, seed: int, ranks: int, say: Callable[[str], None], kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `recipe` once in peace on one process and `runs` times with a fault on `ranks`; what came of it.

    Folders of runs that broke a promise stay in `folder`, with what each rank said.
    """
    steps = recipe.train.steps
    if steps is None or steps < LEAST_STEPS or recipe.checkpoint.every is None or recipe.checkpoint.every > steps // 3:
        raise InputError(f"chaos: give the recipe train.steps ≥ {LEAST_STEPS} and checkpoint.every ≤ train.steps / 3")
    if not 2 <= ranks <= recipe.train.batch_size:
        raise InputError(f"chaos: --ranks {ranks}: expected 2 to train.batch_size ({recipe.train.batch_size})")
    if ":/" in str(folder):
        raise InputError(f"--folder {folder}: runs are broken in a folder of this machine; give one, such as runs/chaos")
    if folder.exists():
        raise InputError(f"{folder}: is there already; give another --folder")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder.mkdir(parents=True)
    with network(ranks) as there:
        names = _possible(kinds or tuple(KINDS), there, say)
        say("reference: one process, no fault")
        plain = _reference(recipe, folder, None)
        spoilt: dict[str, Curve] = {}
        results = []
        for number in range(runs):
            fault = _draw(names[number % len(names)], f"{seed}-{number}", steps, ranks)
            reference = plain
            if fault.kind in DATA:  # they have a reference of their own, at one step
                fault = fault._replace(step=steps // 2)
                if fault.kind not in spoilt:
                    spoilt[fault.kind] = _reference(recipe, folder, fault)
                reference = spoilt[fault.kind]
            results.append(_one(recipe, folder / f"run-{number:03d}", fault, reference, ranks, there))
            say(_line(number, runs, results[-1]))
    report = {"runs": runs, "seed": seed, "ranks": ranks, "kept": sum(not r["broken"] for r in results), "results": results}
    write_atomically(folder / "chaos.json", json.dumps(report, indent=1))
    return report


def _possible(kinds: Sequence[str], there: Network | None, say: Callable[[str], None]) -> list[str]:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"chaos: no fault {unknown[0]!r}; there are: {', '.join(KINDS)}")
    possible = [kind for kind in kinds if kind not in FAULTS or can_have(there, kind)]
    for kind in kinds:
        if kind not in possible:
            say(f"not here: {kind} (needs {NEEDS[kind]})")
    if not possible:
        raise InputError("chaos: none of these faults can be made here")
    return possible


def _draw(kind: str, seed: str, steps: int, ranks: int) -> Fault:
    rng = random.Random(seed)
    step = rng.randrange(steps // 3 + 2, steps - 2) if kind in ("checkpoint bit", "weight bit") else rng.randrange(2, steps - 2)
    return Fault(kind, rng.randrange(ranks), step, rng.random() * 0.03, rng.randrange(2**31))


def _reference(recipe: Recipe, folder: Path, fault: Fault | None) -> Curve:
    """The curve of one process."""
    alone = Trial(
        recipe, folder / ("reference" if fault is None else f"reference {fault.kind}"), fault and fault._replace(rank=-1)
    )
    if alone.run(1) != 0:
        said = (alone.folder / "rank-0-1.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"chaos: the recipe does not run without faults: {said[-1] if said else 'it said nothing'}")
    return curve_of(alone.folder)


def _one(recipe: Recipe, folder: Path, fault: Fault, reference: Curve, ranks: int, there: Network | None) -> dict[str, Any]:
    began = time.monotonic()
    trial = Trial(recipe, folder, fault, there)
    broken = broken_promises(trial, trial.run(ranks), reference, ranks)
    if trial.network is not None:
        trial.network.heal()
    slowed = step_seconds(folder, fault.step) if fault.kind in SLOWED else None
    events = [event["event"] for event in read_events(folder)]
    if not broken:
        shutil.rmtree(folder)
    return {
        "fault": fault._asdict(),
        "attempts": trial.attempt,
        "events": events,
        "recovery_seconds": recovery_seconds(trial),
        "step_seconds": slowed,
        "seconds": time.monotonic() - began,
        "broken": broken,
    }


def _line(number: int, runs: int, result: dict[str, Any]) -> str:
    fault = result["fault"]
    slowed = "" if result["step_seconds"] is None else "a step {:.3f} s, then {:.3f} · ".format(*result["step_seconds"])
    outcome = "kept" if not result["broken"] else "BROKEN: " + "; ".join(result["broken"])
    return (
        f"{number + 1}/{runs} {fault['kind']} · rank {fault['rank']}, step {fault['step']} · {result['attempts']} starts · "
        f"{result['seconds']:.1f} s · {slowed}{outcome}"
    )


def table(report: dict[str, Any]) -> str:
    """The report as a table of Markdown, a line a fault."""
    lines = [
        "| fault | runs | kept | starts | seconds from the fault to the new start, median, most |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, meaning in KINDS.items():
        mine = [r for r in report["results"] if r["fault"]["kind"] == kind]
        if not mine:
            continue
        waits = [r["recovery_seconds"] for r in mine if r["recovery_seconds"] is not None]
        wait = f"{statistics.median(waits):.1f}, {max(waits):.1f}" if waits else "—"
        kept, starts = sum(not r["broken"] for r in mine), statistics.fmean(r["attempts"] for r in mine)
        lines.append(f"| {meaning} | {len(mine)} | {kept} | {starts:.1f} | {wait} |")
    return "\n".join([*lines, f"| all | {report['runs']} | {report['kept']} | | |"])

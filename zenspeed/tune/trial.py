"""A trial: a recipe trained in processes of its own. One that dies is a result like others, with the reason.

What a trial leaves in its folder: recipe.yaml, output.txt, and the run without its checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.config import dump, validate, write_atomically
from zenspeed.errors import InputError
from zenspeed.recipe import Recipe
from zenspeed.runlog import read_metrics

MEASURED = {"seconds": False, "memory_bytes": False, "tokens_per_second": True}
"""What every run measures, and whether more of it is better."""


class Outcome(NamedTuple):
    """What came of a trial."""

    values: dict[str, float]
    """Figures on the validation split, and what was measured; empty if it died."""
    seconds: float
    died: str | None = None
    """Why, in its own last words."""
    higher: tuple[str, ...] = ()
    """Names of figures of which more is better."""


class Place(NamedTuple):
    """Processes that a trial gets."""

    ranks: int = 1
    threads: int = 1


def trial_recipe(recipe: Recipe, folder: Path, *, steps: int | None = None, evaluations: int | None = None) -> Recipe:
    """The recipe as it is tried: in `folder`, without what only people would look at. `evaluations`: so many in a run."""
    data = recipe.model_dump(mode="json")
    data["run"] |= {"folder": str(folder / "run"), "name": folder.name}
    data["log"] |= {"tensorboard": False}
    data["sample"] |= {"prompts": []}
    data["checkpoint"] |= {"every": None, "keep": 1, "keep_best": False}
    if steps is not None:
        data["train"] |= {"steps": steps, "minutes": None, "epochs": None}
    if evaluations is not None:
        known = data["train"]["steps"]
        data["evaluate"]["every"] = 0 if evaluations == 0 else max(1, -(-known // evaluations)) if known else None
    return validate(Recipe, data)


class Running:
    """A trial under way."""

    def __init__(self, recipe: Recipe, folder: Path, place: Place) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        self.folder, self.started = folder, time.monotonic()
        write_atomically(folder / "recipe.yaml", dump(recipe))
        words = ["launch", "-n", str(place.ranks)] if place.ranks > 1 else []
        words += ["train", str(folder / "recipe.yaml")]
        environment = os.environ | {"OMP_NUM_THREADS": str(place.threads)}
        with (folder / "output.txt").open("wb") as output:
            # A session of its own: Ctrl-C reaches the search alone, which ends its trials itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zenspeed", *words], stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def validations(self, metric: str) -> list[float]:
        """Values of a figure at the evaluations so far."""
        name = f"validation_{metric}"
        return [record[name] for record in read_metrics(self.folder / "run") if name in record]

    def poll(self) -> Outcome | None:
        """None while it runs."""
        if self._process.poll() is None:
            return None
        seconds = time.monotonic() - self.started
        shutil.rmtree(self.folder / "run" / "checkpoints", ignore_errors=True)
        if self._process.returncode:
            return Outcome({}, seconds, f"code {self._process.returncode}: {self._last_words()}")
        return _outcome(self.folder / "run", seconds)

    def stop(self) -> None:
        """Ends it at once; what it had made is of no use."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder / "run" / "checkpoints", ignore_errors=True)

    def wait(self) -> Outcome:
        try:
            while (outcome := self.poll()) is None:
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise
        return outcome

    def _last_words(self) -> str:
        lines = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return next((line for line in reversed(said) if "rror" in line), said[-1] if said else "no word")[:300]


def run_all(recipes: Sequence[tuple[Recipe, Path]], place: Place, jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order of `recipes`, `jobs` at once."""
    running: dict[int, Running] = {}
    done: dict[int, Outcome] = {}
    waiting = list(range(len(recipes)))
    try:
        for index in range(len(recipes)):
            while index not in done:
                while waiting and len(running) < jobs:
                    number = waiting.pop(0)
                    running[number] = Running(*recipes[number], place)
                for number, trial in list(running.items()):
                    if (outcome := trial.poll()) is not None:
                        done[number] = outcome
                        del running[number]
                time.sleep(0.02)
            yield done[index]
    finally:
        for trial in running.values():
            trial.stop()


def _outcome(run: Path, seconds: float) -> Outcome:
    content: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    figures = [f for f in content["figures"] if not f["name"].startswith("test_") and f["value"] is not None]
    values = {f["name"]: float(f["value"]) for f in figures if math.isfinite(f["value"])}
    higher = [f["name"] for f in figures if higher_is_better(f["name"])]
    records = [record for record in read_metrics(run) if "loss" in record]
    rates = [record["tokens_per_second"] for record in records[len(records) // 3 :]]
    values["seconds"] = records[-1]["elapsed_seconds"]
    values["memory_bytes"] = max(float(record["memory_bytes"]) for record in records)
    values["tokens_per_second"] = statistics.median(rates)
    return Outcome(values, seconds, None, tuple(higher))


_LOWER = ("loss", "perplexity", "bits_per_byte", "ter", "error", "seconds", "bytes", "brier", "calibration", "ece", "length")


def higher_is_better(name: str) -> bool:
    """Of figures: shares and correlations, unless their name says that it is a loss or an error."""
    return MEASURED.get(name, not any(name == word or name.endswith(f"_{word}") or word in name.split("_") for word in _LOWER))


def metric_of(name: str, known: Sequence[str]) -> str:
    """`name`, or an InputError that lists the metrics there are, nearest first."""
    import difflib

    if name in known:
        return name
    ranked = sorted(known, key=lambda k: -difflib.SequenceMatcher(None, name, k).ratio())
    raise InputError(
        f"--metric {name}: a run of this recipe gives no such figure; it gives, nearest first: {', '.join(ranked)}"
    )

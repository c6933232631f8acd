"""What a run leaves behind for people: metrics.jsonl, TensorBoard events, the loss curve, the environment it ran in."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenspeed.config import InputError, write_atomically
from zenspeed.machine import environment

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


class RunLog:
    """Writes the records of one run; every record has a `step`. Only rank 0 has one that writes (`enabled`)."""

    def __init__(self, folder: Path, *, enabled: bool, tensorboard: bool, resumed_step: int | None = None) -> None:
        self.folder, self.enabled = folder, enabled
        self._events: Any = None
        if not enabled:
            return
        make_folder(folder)
        try:
            if resumed_step is not None:
                _forget_after(folder / METRICS, resumed_step)
            # What a run left that never came to a checkpoint cannot be gone on from, and would only be mixed in.
            self._file = (folder / METRICS).open("w" if resumed_step is None else "a", encoding="utf-8")
            write_atomically(folder / "environment.json", json.dumps(environment(), indent=1))
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}; give another: --set run.folder=…") from None
        self._tensorboard = tensorboard
        self._purge_step = None if resumed_step is None else resumed_step + 1

    def write(self, record: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard:
            self._write_events(record)

    def _write_events(self, record: Mapping[str, Any]) -> None:
        if self._events is None:
            # Imported at the first record: the run's first step need not wait for it.
            from torch.utils.tensorboard.writer import SummaryWriter

            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._events.add_scalar(key, value, record["step"])

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`: the run goes on from there."""
        if self.enabled:
            self._file.close()
            _forget_after(self.folder / METRICS, step)
            self._file = (self.folder / METRICS).open("a", encoding="utf-8")

    def close(self) -> None:
        if self.enabled:
            self._file.close()
            if self._events is not None:
                self._events.close()


def make_folder(folder: Path) -> None:
    """Makes a folder of a run where there is none.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; give another: --set run.folder=…") from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line that was cut off by a crash is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def note(folder: Path, event: str, **facts: Any) -> None:
    """Adds a line to the run's events.jsonl: what went wrong and what was decided. Lines stay when a run goes on."""
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts})
    with contextlib.suppress(OSError), (folder / EVENTS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first."""
    try:
        lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _forget_after(path: Path, step: int) -> None:
    """Takes out what a run wrote after the checkpoint it goes on from: those steps are made again."""
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def plot_loss(folder: Path) -> Path | None:
    """Draws loss and validation loss over tokens into loss.svg."""
    records = read_metrics(folder)
    train = [(r["tokens"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["tokens"], r["validation_loss"]) for r in records if "validation_loss" in r]
    if not train:
        return None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color="#9db4c0", linewidth=0.8, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#c1121f", marker="o", markersize=3, label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / "loss.svg"
    figure.savefig(path)
    return path

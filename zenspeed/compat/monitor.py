"""`engine.monitor`: figures of a run to TensorBoard, CSV files, Weights & Biases and MLflow, as the config asks; rank 0 writes.

An event is (name, value, samples seen). The engine writes Train/Samples/train_loss, lr and loss_scale after every update.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from zenspeed.config import InputError

Event = tuple[str, Any, int]


class Writer(Protocol):
    def write(self, name: str, value: float, step: int) -> None: ...
    def close(self) -> None: ...


class Monitor:
    """All writers of a config; without any, or on other ranks than 0, it does nothing."""

    def __init__(self, settings: Any, rank: int) -> None:
        """Raises InputError: a service is asked for whose package is not installed, or a folder cannot be written."""
        kinds: dict[str, Callable[[Any], Writer]] = {
            "tensorboard": TensorBoard,
            "csv_monitor": Csv,
            "wandb": Wandb,
            "mlflow": MLflow,
        }
        asked = {name: getattr(settings, name) for name in kinds if getattr(settings, name).enabled}
        self.enabled = bool(asked)
        self.writers: list[Writer] = [kinds[name](section) for name, section in asked.items()] if rank == 0 else []

    def write_events(self, events: Sequence[Event], flush: bool = True) -> None:
        """Writes (name, value, step) triples."""
        for name, value, step in events:
            for writer in self.writers:
                writer.write(name, float(value), int(step))

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        self.writers = []


class TensorBoard:
    """Event files in output_path/job_name."""

    def __init__(self, section: Any) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(_folder(section, "tensorboard")))

    def write(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Csv:
    """One file a name in output_path/job_name, with the columns step and the name."""

    def __init__(self, section: Any) -> None:
        self._folder = _folder(section, "csv_monitor")

    def write(self, name: str, value: float, step: int) -> None:
        column = name.replace("/", "_")
        path = self._folder / f"{column}.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(["step", column])
            rows.writerow([step, value])

    def close(self) -> None:
        pass


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, section: Any) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise InputError("wandb.enabled: the package is not installed; pip install wandb, or set it to false") from None
        self._run = wandb.init(project=section.project, group=section.group, entity=section.team)

    def write(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow."""

    def __init__(self, section: Any) -> None:
        try:
            from mlflow.tracking import MlflowClient  # type: ignore[import-not-found]
        except ImportError:
            raise InputError("mlflow.enabled: the package is not installed; pip install mlflow, or set it to false") from None
        self._client = MlflowClient(section.tracking_uri)
        found = self._client.get_experiment_by_name(section.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(section.experiment)
        self._run = self._client.create_run(experiment, run_name=section.run_name).info.run_id

    def write(self, name: str, value: float, step: int) -> None:
        self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _folder(section: Any, name: str) -> Path:
    folder = Path(section.output_path or f"{name}_output") / section.job_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name}.output_path: {folder}: cannot be made: {error.strerror}") from None
    return folder

"""What a report says, as data: report.json beside every report.html, and what else the run's folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import read_text, write_atomically
from zenspeed.errors import InputError, missing
from zenspeed.evaluate.interval import RESAMPLES, SEED
from zenspeed.evaluate.predictions import as_predictions
from zenspeed.evaluate.rowfile import RowFile
from zenspeed.evaluate.score import Options, evaluation, table_of
from zenspeed.runlog import read_metrics

SCHEMA = "zenspeed.report"
VERSION = 1
_SHOWN = 20


class RunReport(NamedTuple):
    """All that a page shows of one run."""

    name: str
    folder: Path
    content: dict[str, Any]
    """report.json."""
    metrics: list[dict[str, Any]]
    recipe: str
    environment: dict[str, Any]
    samples: str
    data: dict[str, Any] | None
    """data_report.json."""


def write_content(folder: Path, figures: Mapping[str, Any], facts: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes report.json: figures of the run's end, and the evaluation of its predictions, if it made any."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "run": folder.name,
        "resamples": RESAMPLES,
        "seed": SEED,
        "facts": dict(facts),
        "data": dict(data),
        "figures": table_of(dict(figures)),
        "predictions": _of_predictions(folder / "predictions.jsonl"),
    }
    write_atomically(folder / "report.json", json.dumps(content, ensure_ascii=False, default=str))


def _of_predictions(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    rows = RowFile(path)
    predictions = as_predictions(rows, path)
    if predictions.kind == "other":
        return {"kind": "other", "n": len(rows), "figures": [], "warnings": [], "examples": rows[:_SHOWN]}
    return evaluation(predictions, Options(slices=_slices(rows))) | {"examples": rows[:_SHOWN]}


def _slices(rows: Sequence[dict[str, Any]]) -> list[str]:
    """By length, in two halves and a tail, where the texts are known and the rows enough."""
    from zenspeed.evaluate.slices import text_of

    lengths = np.sort(np.fromiter((len(text_of(row)) for row in rows), np.int64))
    edges = sorted({int(lengths[len(lengths) // 2]), int(lengths[9 * len(lengths) // 10])})
    return [f"length:{','.join(map(str, edges))}"] if lengths[0] < lengths[-1] and len(lengths) >= 40 else []


def read_report(folder: Path) -> RunReport:
    """The report of a run's folder.

    Raises:
        InputError: there is no run.
    """
    if not (folder / "recipe.yaml").exists():
        raise missing(folder, "run", "holds no run: there is no recipe.yaml")
    content: dict[str, Any] = {"figures": [], "facts": {}, "data": {}, "predictions": None}
    if (folder / "report.json").exists():
        content |= _json(folder / "report.json")
    samples = folder / "samples.md"
    return RunReport(
        folder.resolve().name,
        folder,
        content,
        read_metrics(folder),
        read_text(folder / "recipe.yaml"),
        _json(folder / "environment.json") if (folder / "environment.json").exists() else {},
        read_text(samples) if samples.exists() else "",
        _json(folder / "data_report.json") if (folder / "data_report.json").exists() else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}; take it away, or write it anew") from None
    assert isinstance(found, dict)
    return found


def figures_by_name(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures over all rows: of the run's end, then those that only its predictions have."""
    found = {f["name"]: f for f in content["figures"]}
    for f in (content["predictions"] or {}).get("figures", ()):
        if f["slice"] == "all":
            found.setdefault(f["name"], f)
    return found

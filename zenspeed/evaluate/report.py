"""The report of a run: one page of Markdown with its figures and their intervals, its curve, its data, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenspeed.config import write_atomically
from zenspeed.evaluate.interval import RESAMPLES, SEED, Figure


def write_report(folder: Path, figures: Mapping[str, Figure], facts: Mapping[str, Any], data: Mapping[str, Any]) -> Path:
    """Writes report.md into a run's folder.

    Args:
        figures: on the whole validation split.
        facts: what to say of the run, by name.
        data: of `prepare`: counts of both splits.
    """
    lines = [
        f"# {folder.name}",
        "",
        "## On the held-out documents",
        "",
        "| figure | value | 95 % interval | definition |",
        "|---|---|---|---|",
    ]
    for name, f in figures.items():
        interval = f"{f.low:.4f} … {f.high:.4f}" if f.low is not None and f.high is not None else f"none: {f.reason}"
        lines.append(f"| {name.replace('_', ' ')} | {f.value:.4f} | {interval} | {f.definition} |")
    n = next(iter(figures.values())).n
    unit = "documents" if "train" in data else "rows"
    lines += [
        "",
        f"Intervals: bootstrap over {n:,} {unit}, {RESAMPLES:,} resamples, seed {SEED}.",
        "",
        "![loss](loss.svg)",
        "",
        "## The run",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "## The data",
        "",
        *(_documents(data) if "train" in data else _rows(data)),
        "",
        "## To repeat it",
        "",
        "```bash",
        f"zenspeed train {folder / 'recipe.yaml'} --set run.folder=again",
        "```",
        "",
    ]
    path = folder / "report.md"
    write_atomically(path, "\n".join(lines))
    return path


def _documents(data: Mapping[str, Any]) -> list[str]:
    lines = ["| split | documents | duplicates | tokens | bytes | longest document |", "|---|---|---|---|---|---|"]
    for split in ("train", "validation"):
        d = data[split]
        row = (d["num_documents"], d["num_duplicates"], d["num_tokens"], d["num_bytes"], d["longest_document_tokens"])
        lines.append(f"| {split} | " + " | ".join(f"{value:,}" for value in row) + " |")
    return lines


def _rows(data: Mapping[str, Any]) -> list[str]:
    lines = [f"- {split}: {count:,} rows" for split, count in data["rows"].items()]
    lines += [f"- texts cut at the longest sequence, {split}: {count:,}" for split, count in data.get("cut", {}).items()]
    lines += [f"- label {label!r}: {count:,} training rows" for label, count in data.get("labels", {}).items()]
    lines += [f"- left out by {step}: {count:,} rows" for step, count in data.get("left_out", {}).items()]
    reading = data["reading"]
    return [*lines, f"- rows that could not be read: {reading['bad_rows']:,}"]

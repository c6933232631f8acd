"""Cross-validation: every row is tested once by a model that never saw it, and the spread over folds is measured.

    rows ── folds ──┬─ fold 1: train.jsonl, test.jsonl, recipe.yaml ── zenspeed train ── report.json ─┐
                    └─ fold k: …                                                                      ┴─ mean, pooled figures

Each fold is a run of its own process that is given the files of its training rows alone, so tokenizer, vocabulary, cleaning and
whatever else is learned from data can know nothing of the rows it is tested on. Equal texts come into one fold, else a copy of
a test row would be learned. A fold that is done is not done again: what was stopped goes on.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError, dump, validate, write_atomically
from zenspeed.data.duplicates import text_hash
from zenspeed.data.files import PYTHON_DOCS
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.source import documents
from zenspeed.data.split import Fold, folds
from zenspeed.evaluate.interval import SEED, Figure, Undefined
from zenspeed.evaluate.predictions import as_predictions
from zenspeed.evaluate.rowfile import RowFile
from zenspeed.evaluate.score import Options, evaluation, table_of
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe
from zenspeed.tasks.data import answer_columns, is_text, text_columns
from zenspeed.tasks.labels import labels_of

SCHEMA = "zenspeed.crossval"
VERSION = 1
Rows = list[dict[str, Any]]


class Plan(NamedTuple):
    """How rows are dealt into folds, and where it is done."""

    folder: Path
    num_folds: int = 5
    repeats: int = 1
    group_by: str | None = None
    """Column whose equal values are tested together."""
    stratify: bool = True
    """Each label in equal shares (classification)."""
    seed: int = 1
    jobs: int | None = None
    """Folds at once; None: as many as there are cores."""
    prepare: Callable[[Path], None] | None = None
    """Is given each fold's folder before it is trained; a tuned.yaml that it writes there is trained in the recipe's place."""


def crossval(recipe: Recipe, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains and tests every fold; crossval.json, predictions.jsonl and the run of each fold come into `plan.folder`.

    Raises:
        InputError: too few rows or groups, a column that is missing, or a fold whose training failed.
    """
    rows = _read(recipe)
    made = _folds(rows, recipe, plan)
    recipe = _with_labels(recipe, rows)
    say(f"crossval: {len(rows):,} rows, {plan.num_folds} folds × {plan.repeats}, into {plan.folder}")
    places = [plan.folder / f"repeat-{i // plan.num_folds + 1}" / f"fold-{i % plan.num_folds + 1}" for i in range(len(made))]
    for place, fold in zip(places, made, strict=True):
        _write_fold(place, rows, fold, recipe)
    for place in places if plan.prepare is not None else ():
        assert plan.prepare is not None
        plan.prepare(place)
    _train_all(places, plan.jobs or max(1, min(len(places), usable_cores())), say)
    found = _summary(places, made, plan, recipe)
    write_atomically(plan.folder / "crossval.json", json.dumps(found, ensure_ascii=False, indent=1))
    return found


# Rows and folds -------------------------------------------------------------------------------------------------------


def _read(recipe: Recipe) -> Rows:
    """Rows as they are in the source: cleaning is each fold's own."""
    data, task = recipe.data, recipe.task
    if data.sources:
        raise InputError("crossval: deals the rows of one data.source; data.sources is a mixture")
    if data.test is not None:
        raise InputError("data.test: crossval tests on its folds; take data.test away, or test the model you keep on it")
    language = task.kind == "language_model"
    if data.source == PYTHON_DOCS or is_text(data.source):
        plain = recipe.data.model_copy(update={"clean": type(data.clean)()})
        return [{_text(recipe): text} for text in documents(plain, data.source)]
    columns = [data.text_column] if language else [*text_columns(recipe), *answer_columns(recipe)]
    options = RowOptions(
        columns=tuple(columns), on_bad_row=data.on_bad_row, encoding=data.encoding, line_column=_text(recipe),
        split=data.split, endpoint=data.endpoint, fetch=data.fetch,
    )  # fmt: skip
    return list(read_rows(data.source, options))


def _text(recipe: Recipe) -> str:
    return recipe.data.text_column if recipe.task.kind == "language_model" else recipe.task.text


def _folds(rows: Rows, recipe: Recipe, plan: Plan) -> list[Fold]:
    labels = None
    if plan.stratify and recipe.task.kind == "classification":
        labels = [str(row[recipe.task.label]) for row in rows]
    groups: list[Any] | None = None
    if plan.group_by is not None:
        missing = next((i for i, row in enumerate(rows, 1) if plan.group_by not in row), None)
        if missing is not None:
            raise InputError(
                f"--group-by: row {missing} has no column {plan.group_by!r}; it has {', '.join(rows[missing - 1])}"
            )
        groups = [str(row[plan.group_by]) for row in rows]
    else:
        hashes = [text_hash(str(row[_text(recipe)])) for row in rows]
        groups = hashes if len(set(hashes)) < len(hashes) else None
    return folds(labels, groups, plan.num_folds, plan.repeats, plan.seed, rows=len(rows))


def _with_labels(recipe: Recipe, rows: Rows) -> Recipe:
    """The set of labels is known beforehand: a fold whose training rows lack one still has a place for it."""
    if recipe.task.kind != "classification":
        return recipe
    labels = labels_of([str(row[recipe.task.label]) for row in rows], recipe.task.labels, recipe.task.label)
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": labels})})


def _write_fold(place: Path, rows: Rows, fold: Fold, recipe: Recipe) -> None:
    """The fold's rows and its recipe, unless they are there; others are refused, so that no two dealings are mixed."""
    place.mkdir(parents=True, exist_ok=True)
    parts = {"train": fold.train, "test": fold.test}
    names = {name: place / f"{name}.jsonl" for name in parts}
    data = recipe.model_dump(mode="json")
    data["run"] |= {"folder": str(place / "run"), "name": place.name}
    data["data"] |= {"source": str(names["train"]), "leakage": "allow", "encoding": "utf-8"}
    # A language model has no test rows of its own: its validation rows are looked at, and nothing is chosen by them.
    data["data"]["validation" if recipe.task.kind == "language_model" else "test"] = str(names["test"])
    files = {names[name]: "".join(_line(rows[i]) for i in part) for name, part in parts.items()}
    files[place / "recipe.yaml"] = dump(validate(Recipe, data))
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path}: is of another cross-validation; give another folder: --folder NEW")
        write_atomically(path, text)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


# Training -------------------------------------------------------------------------------------------------------------


def _train_all(places: Sequence[Path], jobs: int, say: Callable[[str], None]) -> None:
    """Each fold in a process of its own, `jobs` at once, cores shared between them."""
    waiting = [place for place in places if not (place / "run" / "report.json").exists()]
    if len(waiting) < len(places):
        say(f"crossval: {len(places) - len(waiting)} folds are done already")
    threads = max(1, usable_cores() // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    running: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place = waiting.pop(0)
                running[place] = _start(place, environment)
            for place, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[place]
                if process.returncode:
                    last = (place / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                    raise InputError(f"{place}: training ended with code {process.returncode}: " + "\n  ".join(last))
                say(f"crossval: {place.parent.name} {place.name} done")
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _start(place: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    run = place / "run"
    begun = (run / "checkpoints").exists() and any((run / "checkpoints").iterdir())
    tuned = place / "tuned.yaml"
    words = ["resume", str(run)] if begun else ["train", str(tuned if tuned.exists() else place / "recipe.yaml")]
    with (place / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "zenspeed", *words], stdout=output, stderr=subprocess.STDOUT, env=environment
        )


# Results --------------------------------------------------------------------------------------------------------------


def _summary(places: Sequence[Path], made: Sequence[Fold], plan: Plan, recipe: Recipe) -> dict[str, Any]:
    per_fold = [_figures(place / "run") for place in places]
    ratio = float(np.mean([len(fold.test) / len(fold.train) for fold in made]))
    names = list(dict.fromkeys(name for figures in per_fold for name in figures))
    means = {name: mean_over_folds([f.get(name) for f in per_fold], ratio) for name in names}
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "source": recipe.data.source,
        "folds": plan.num_folds,
        "repeats": plan.repeats,
        "figures": table_of(means),
        "fold_figures": [
            {"repeat": i // plan.num_folds + 1, "fold": i % plan.num_folds + 1, "name": name, "value": value}
            for i, figures in enumerate(per_fold)
            for name, value in figures.items()
        ],
        "pooled": _pooled(places[: plan.num_folds], plan.folder),
        "warnings": [] if len(places) >= 5 else [f"{len(places)} folds only: the interval over folds is wide"],
    }
    return found


def _figures(run: Path) -> dict[str, float | None]:
    """Figures on the fold's rows, by name."""
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    all_of = {f["name"]: f["value"] for f in content["figures"]}
    tested = {name.removeprefix("test_"): value for name, value in all_of.items() if name.startswith("test_")}
    return tested or all_of


def mean_over_folds(values: Sequence[float | None], test_over_train: float) -> Figure | Undefined:
    """The mean of a figure over folds, with the interval of Nadeau & Bengio 2003.

    Folds share training rows, so their figures vary together; the variance of the mean is taken as (1/J + test/train) times
    that between folds, with Student's t of J − 1 degrees.
    """
    definition = "mean over folds; interval corrected for shared training rows (Nadeau & Bengio 2003)"
    known = np.array([v for v in values if v is not None], np.float64)
    if len(known) < len(values):
        return Undefined(len(values), definition, f"not defined in {len(values) - len(known)} of {len(values)} folds")
    if len(known) < 2:
        return Figure(float(known[0]), None, None, 1, definition, "one fold only")
    t = float(np.quantile(np.abs(np.random.default_rng(SEED).standard_t(len(known) - 1, 1_000_000)), 0.95))
    half = t * math.sqrt((1 / len(known) + test_over_train) * known.var(ddof=1))
    mean = float(known.mean())
    return Figure(mean, mean - half, mean + half, len(known), definition)


def _pooled(places: Sequence[Path], folder: Path) -> dict[str, Any] | None:
    """The evaluation of all rows, each answered by the model that had not seen it (the first repeat); None without answers."""
    files = [place / "run" / "predictions.jsonl" for place in places]
    if not all(file.exists() for file in files):
        return None
    path = folder / "predictions.jsonl"
    with (partial := path.with_suffix(".partial")).open("w", encoding="utf-8") as pooled:
        for i, file in enumerate(files, 1):
            pooled.writelines(_line({**row, "fold": str(i)}) for row in RowFile(file))
    partial.replace(path)
    predictions = as_predictions(RowFile(path), path)
    return None if predictions.kind == "other" else evaluation(predictions, Options(slices=["fold"]))

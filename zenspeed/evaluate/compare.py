"""Whether one system is better than another on the same rows, from files of predictions or runs that hold them.

Runs of one recipe that differ in their seed alone are one system: their spread is a source of variance beside the rows.
"""

from __future__ import annotations

import itertools
import json
import math
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import load
from zenspeed.data.duplicates import text_hash
from zenspeed.errors import InputError
from zenspeed.evaluate.interval import RESAMPLES, SEED, Array, Measure
from zenspeed.evaluate.measures import measures_of
from zenspeed.evaluate.paired import Effect, holm, over_seeds, paired
from zenspeed.evaluate.predictions import Predictions, read_predictions
from zenspeed.recipe import Recipe

SCHEMA = "zenspeed.comparison"
VERSION = 1
_POWER = 2.8  # standard errors of a difference that is found in 80 of 100 cases at p < 0.05
_PER_CENT = ("accuracy", "exact_match", "token_f1", "balanced_accuracy", "f1_macro", "rouge1", "rouge2", "rougeL")

_COMPARED = {"texts": ["exact_match", "chrf"], "numbers": ["spearman"], "ranks": ["mrr"]}


class Comparison(NamedTuple):
    """A measure of `second` minus that of `first`, on rows matched by `matched_by`."""

    first: str
    second: str
    metric: str
    n: int
    runs: tuple[int, int]
    """Runs of each, which differ in their seed alone."""
    matched_by: str
    value_first: float
    value_second: float
    difference: float
    low: float
    high: float
    p: float
    """Corrected by Holm's method for the number of comparisons."""
    test: str
    detectable: float
    """The least true difference that so many rows would show in 80 of 100 cases."""
    higher_is_better: bool

    @property
    def conclusion(self) -> str:
        """What may be concluded, a sentence."""
        if math.isnan(self.difference):
            return f"{self.metric} is not defined on these rows: nothing may be concluded"
        if self.p >= 0.05:
            least = _written(self.metric, self.detectable).lstrip("+")
            return f"these rows do not show that they differ; a difference of {least} would probably have been seen"
        better = (self.difference > 0) == self.higher_is_better
        return f"{self.second} is {'better' if better else 'worse'} than {self.first}"

    def __str__(self) -> str:
        difference, low, high = (_written(self.metric, x) for x in (self.difference, self.low, self.high))
        a, b = (_written(self.metric, x).lstrip("+") for x in (self.value_first, self.value_second))
        runs = f", {self.runs[0]} and {self.runs[1]} runs" if max(self.runs) > 1 else ""
        return (
            f"{self.second} against {self.first}: {self.metric} {b} against {a}, {difference} [{low}, {high}], p {self.p:.3g}, "
            f"n {self.n:,}{runs}: {self.conclusion}"
        )


def _written(metric: str, value: float) -> str:
    return f"{100 * value:+.2f} points" if metric in _PER_CENT else f"{value:+.4f}"


class System(NamedTuple):
    """One recipe, or one file: its name, and the predictions of its runs."""

    name: str
    runs: list[Predictions]


def compare_files(paths: Sequence[Path], metric: str | None = None) -> list[Comparison]:
    """Compares every pair of systems. metric: None: accuracy of labels, Spearman's of numbers, exact match and chrF of texts,
    MRR of rankings.

    Raises:
        InputError: fewer than two systems, files that are not of the same rows, or a metric that they do not have.
    """
    if len(paths) < 2:
        raise InputError("compare: one file given; name two or more")
    systems = systems_of(paths)
    if len(systems) < 2:
        raise InputError(f"compare: these are {len(paths)} runs of one recipe, {systems[0].name}; name another system as well")
    found = [c for a, b in itertools.combinations(systems, 2) for c in _pair(a, b, metric)]
    return [c._replace(p=p) for c, p in zip(found, holm([c.p for c in found]), strict=True)]


def systems_of(paths: Sequence[Path]) -> list[System]:
    """Runs whose recipes differ in seed, name and folder alone are one system, named by the first."""
    systems: dict[str, System] = {}
    for i, path in enumerate(paths):
        recipe = path / "recipe.yaml"
        key = _without_seed(recipe) if path.is_dir() and recipe.exists() else str(path)
        if path in paths[:i]:  # against itself
            key = f"{path} {i}"
        systems.setdefault(key, System(str(path), [])).runs.append(read_predictions(path))
    return list(systems.values())


def _without_seed(path: Path) -> str:
    data: dict[str, Any] = load(Recipe, path).model_dump(mode="json")
    data.pop("run")
    return repr(data)


def _pair(a: System, b: System, metric: str | None) -> list[Comparison]:
    first = a.runs[0]
    matched = [match(first, other) for other in [*a.runs[1:], *b.runs]]
    by = matched[0][1]
    of_a = [first, *(p for p, _ in matched[: len(a.runs) - 1])]
    of_b = [p for p, _ in matched[len(a.runs) - 1 :]]
    wanted = (
        [metric]
        if metric
        else {"texts": ["exact_match", "chrf"], "numbers": ["spearman"], "ranks": ["mrr"]}.get(first.kind, ["accuracy"])
    )
    labels = None
    if first.kind == "labels":
        labels = sorted({name for p in (*of_a, *of_b) for name in p.labels.names})
    measures = [[measures_of(p, wanted, labels) for p in runs] for runs in (of_a, of_b)]
    for name in wanted:
        if name not in measures[0][0]:
            known = ", ".join(measures_of(first.take(np.arange(min(2, first.n)))))
            raise InputError(f"--metric: {name!r} is no measure of these predictions; there are {known}")
    return [_compare(a.name, b.name, name, [[m[name] for m in of] for of in measures], by, first.n) for name in wanted]


def _compare(first: str, second: str, name: str, measures: list[list[Measure]], by: str, n: int) -> Comparison:
    of_a, of_b = measures
    effects = [paired(x, y) for x in of_a for y in of_b]
    one: Effect = effects[0]
    difference, low, high, p, test = one.difference, one.low, one.high, one.p, one.test
    values = [[_value(m) for m in of] for of in measures]
    deviations: Array = (
        np.mean([e.deviations for e in effects], 0) if len({len(e.deviations) for e in effects}) == 1 else one.deviations
    )
    runs = (len(of_a), len(of_b))
    if min(runs) > 1:
        difference, low, high, p = over_seeds(values[0], values[1], deviations)
        test = "rows by bootstrap and seeds by Student's t"
    elif max(runs) > 1:
        test += "; of the first run of each: seeds are counted from two runs of both on"
        values = [[of[0]] for of in values]
    detectable = _POWER * float(np.std(deviations))
    a, b = (float(np.mean(of)) for of in values)
    better = of_a[0].higher_is_better
    return Comparison(first, second, name, n, runs, by, a, b, difference, low, high, p, test, detectable, better)


def _value(measure: Measure) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(measure.value(measure.statistics.sum(0, keepdims=True))[0])


def match(a: Predictions, b: Predictions) -> tuple[Predictions, str]:
    """The rows of `b` in the order of `a`, and what they were matched by: `id`, or `order`.

    Raises:
        InputError: they are not the same rows.
    """
    if a.kind != b.kind:
        raise InputError(f"{b.path}: holds {b.kind}, {a.path} {a.kind}; compare answers of one kind")
    order, by = _matched(a, b)
    other = np.flatnonzero(_truths(a) != _truths(b)[order])
    if len(other):
        raise InputError(f"{b.path}: row {other[0] + 1} by {by} has another {a.truth} than in {a.path}; compare the same rows")
    return b if by == "order" else b.take(order), by


def _truths(p: Predictions) -> np.ndarray:
    """(n,) hashes of what is right, as JSON writes it."""
    if p.kind == "labels":
        return _hashes(p.labels.names)[p.labels.truth]
    return p.numbers.truth if p.kind == "numbers" else _hashes(row.get(p.truth) for row in p.rows)


def _hashes(values: Iterable[Any]) -> np.ndarray:
    found = array("Q", (text_hash(json.dumps(value, ensure_ascii=False)) for value in values))
    return np.array(found, np.uint64)


def _matched(a: Predictions, b: Predictions) -> tuple[np.ndarray, str]:
    """(n,) the row of `b` that belongs to each of `a`, and what they were matched by."""
    of_a, of_b = _ids(a), _ids(b)
    if of_a is None or of_b is None:
        if a.n != b.n:
            raise InputError(f"{b.path}: {b.n} rows against {a.n} in {a.path}; give rows an id, or the same rows")
        return np.arange(a.n), "order"
    for p, of in ((a, of_a), (b, of_b)):
        if repeated := len(of) - len(np.unique(of)):
            raise InputError(f"{p.path}: {repeated} rows repeat an id; give every row its own")
    if len(alone := np.setxor1d(of_a, of_b)):
        p, of = (a, of_a) if np.isin(alone[0], of_a) else (b, of_b)
        one = str(p.rows[int(np.flatnonzero(of == alone[0])[0])]["id"])
        raise InputError(f"{b.path}: {len(alone)} ids are in one file only, such as {one!r}; compare the same rows")
    order = np.empty(a.n, np.int64)
    order[np.argsort(of_a)] = np.argsort(of_b)
    return order, "id"


def _ids(p: Predictions) -> np.ndarray | None:
    """(n,) hashes of the rows' ids, 64 bits; None: not all have one."""
    if "id" not in p.rows[0]:
        return None
    found = array("Q")
    for row in p.rows:
        if "id" not in row:
            return None
        found.append(text_hash(str(row["id"])))
    return np.array(found, np.uint64)


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """For a file that pandas reads: pandas.DataFrame(found["comparisons"])."""
    rows = [c._asdict() | {"conclusion": c.conclusion} for c in comparisons]
    return {"schema": SCHEMA, "version": VERSION, "resamples": RESAMPLES, "seed": SEED, "comparisons": rows}

"""Whether one system is better than another on the same rows: effect, interval, McNemar's exact test, Holm's correction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zenspeed.errors import InputError
from zenspeed.evaluate.interval import RESAMPLES, SEED
from zenspeed.evaluate.predictions import Predictions, read_predictions
from zenspeed.evaluate.written import answer_tokens


class Comparison(NamedTuple):
    """Accuracy (labels) or exact match (texts) of `second` minus `first`, on rows matched by `matched_by`."""

    first: str
    second: str
    n: int
    matched_by: str
    difference: float
    low: float
    high: float
    p: float
    """Of McNemar's exact test; corrected by Holm's method for the number of comparisons."""

    def __str__(self) -> str:
        by = (
            f"{100 * self.difference:+.2f} points [{100 * self.low:+.2f}, {100 * self.high:+.2f}], p {self.p:.3g}, n {self.n:,}"
        )
        if self.p >= 0.05:
            return f"{self.second} against {self.first}: {by}: these rows do not show that they differ"
        word = "better" if self.difference > 0 else "worse"
        return f"{self.second} is {word} than {self.first}: {by}"


def compare_files(paths: Sequence[Path]) -> list[Comparison]:
    """Compares every pair of files (or runs that hold predictions.jsonl).

    Raises:
        InputError: fewer than two files, or files that are not of the same rows.
    """
    if len(paths) < 2:
        raise InputError("compare: one file given; name two or more")
    files = [read_predictions(path) for path in paths]
    found = [_pair(a, b, str(x), str(y)) for (x, a), (y, b) in itertools.combinations(zip(paths, files, strict=True), 2)]
    return [c._replace(p=p) for c, p in zip(found, holm([c.p for c in found]), strict=True)]


def _pair(a: Predictions, b: Predictions, first: str, second: str) -> Comparison:
    (rows_a, rows_b), matched_by = _match(a, b)
    key = a.truth
    for i, (x, y) in enumerate(zip(rows_a, rows_b, strict=True)):
        if x[key] != y.get(key):
            raise InputError(f"{second}: row {i + 1} by {matched_by} has another {key} than in {first}; compare the same rows")
    right_a, right_b = _right(a._replace(rows=rows_a)), _right(b._replace(rows=rows_b))
    n, gained, lost = len(right_a), int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    # Resampling rows draws the three kinds of row from a multinomial.
    drawn = np.random.default_rng(SEED).multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    difference = (gained - lost) / n
    return Comparison(first, second, n, matched_by, difference, float(low), float(high), mcnemar(gained, lost))


def _match(a: Predictions, b: Predictions) -> tuple[tuple[list[dict], list[dict]], str]:
    if all("id" in row for row in a.rows) and all("id" in row for row in b.rows):
        by_a, by_b = ({str(row["id"]): row for row in x.rows} for x in (a, b))
        for x, by in ((a, by_a), (b, by_b)):
            if len(by) != len(x.rows):
                raise InputError(f"{x.path}: {len(x.rows) - len(by)} rows repeat an id; give every row its own")
        if by_a.keys() != by_b.keys():
            alone = sorted(by_a.keys() ^ by_b.keys())
            raise InputError(f"{b.path}: {len(alone)} ids are in one file only, such as {alone[0]!r}; compare the same rows")
        return (list(by_a.values()), [by_b[key] for key in by_a]), "id"
    if len(a.rows) != len(b.rows):
        raise InputError(f"{b.path}: {len(b.rows)} rows against {len(a.rows)} in {a.path}; give rows an id, or the same rows")
    return (a.rows, b.rows), "order"


def _right(x: Predictions) -> np.ndarray:
    if x.kind == "labels":
        return np.array([row["label"] == row["prediction"] for row in x.rows])
    return np.array([answer_tokens(row["reference"]) == answer_tokens(row["prediction"]) for row in x.rows])


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: a fair coin for each row that only one system has right."""
    n, k = gained + lost, min(gained, lost)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected

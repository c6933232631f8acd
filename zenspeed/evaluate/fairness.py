"""How unlike the groups of a protected column are treated: gaps between the highest and the lowest group, with intervals.

Demographic parity: each group is given a label as often (Dwork et al. 2012). Equal opportunity: of those who have the label,
each group's are found as often (Hardt et al. 2016). A gap is 0 where all groups are alike; on few rows it is above 0 by chance,
so each comes with its interval, and with p of a permutation test: how often groups drawn at random would show as much.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zenspeed.evaluate.interval import RESAMPLES, SEED, Array, Figure, Figures, Undefined, interval_of

_LEAST = 5
"""Rows that a group needs."""


def fairness_gaps(groups: Iterable[Any], labels: Iterable[Any], predictions: Iterable[Any]) -> Figures:
    """`demographic_parity_gap[label]` and `equal_opportunity_gap[label]` of every label; `accuracy_gap`."""
    numbers: dict[str, int] = {}
    truth, said = (_numbered(column, numbers) for column in (labels, predictions))
    return gaps_of(groups, list(numbers), truth, said)


def gaps_of(groups: Iterable[Any], labels: Sequence[Any], truth: np.ndarray, said: np.ndarray) -> Figures:
    """The same, `truth` and `said`, (n,), being numbers of labels."""
    numbers: dict[str, int] = {}
    group = _numbered(groups, numbers)
    names = sorted(numbers)
    place = np.empty(len(names), np.int32)
    place[[numbers[name] for name in names]] = np.arange(len(names))
    group, k, everyone = place[group], len(names), np.ones(len(group), bool)
    figures = {"accuracy_gap": _gap(group, everyone, said == truth, k, names, "share of rows that are right", "rows")}
    for label, i in sorted((str(labels[i]), i) for i in np.unique(truth)):
        given, has = said == i, truth == i
        figures[f"demographic_parity_gap[{label}]"] = _gap(
            group, everyone, given, k, names, f"share of rows that are given {label!r}", "rows"
        )
        figures[f"equal_opportunity_gap[{label}]"] = _gap(
            group, has, given, k, names, f"share of rows labelled {label!r} that are found", f"rows labelled {label!r}"
        )
    return figures


def _numbered(column: Iterable[Any], numbers: dict[str, int]) -> np.ndarray:
    found = array("i", (numbers.setdefault(str(value), len(numbers)) for value in column))
    return np.frombuffer(found, np.int32)


def _gap(
    group: np.ndarray, counted: np.ndarray, hit: np.ndarray, k: int, names: list[str], what: str, unit: str
) -> Figure | Undefined:
    definition = f"highest minus lowest group's {what}"
    group, hit = group[counted], hit[counted]
    n = np.bincount(group, minlength=k)
    if k < 2 or n.min() < _LEAST:
        small = names[int(n.argmin())] if k > 1 else names[0]
        reason = "there is one group only" if k < 2 else f"group {small!r} has {n.min()} {unit}, fewer than {_LEAST}"
        return Undefined(int(n.sum()), definition, reason)
    hits = np.bincount(group, weights=hit, minlength=k)
    rates = hits / n
    definition += "; " + ", ".join(
        f"{name} {rate:.3f} (n {count:,})" for name, rate, count in zip(names, rates, n, strict=True)
    )
    rng = np.random.default_rng(SEED)
    drawn = rng.binomial(n, rates, (RESAMPLES, k)) / n
    value = float(rates.max() - rates.min())
    at_random = rng.multivariate_hypergeometric(n, int(hits.sum()), RESAMPLES) / n if hits.sum() else np.zeros((1, k))
    p = (1 + (_range(at_random) >= value - 1e-12).sum()) / (1 + len(at_random))
    return interval_of(value, _range(drawn), int(n.sum()), definition)._replace(p=float(p))


def _range(rates: Array) -> Array:
    return rates.max(-1) - rates.min(-1)

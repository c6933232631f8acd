"""Figures of rankings: recall@k, MRR and nDCG, with intervals over queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zenspeed.evaluate.interval import Array, Figures, Measure, Undefined, figure_of, mean_measure

CUTS = (1, 5, 10)


def recall_at(ranks: Array, k: int) -> float:
    """Share of a query's relevant items among the first `k`. `ranks`: of its relevant items, from 1; inf: not found."""
    return float((ranks <= k).mean())


def reciprocal_rank(ranks: Array) -> float:
    """1 / rank of the first relevant item; 0 where none was found."""
    return float(1 / ranks.min())


def ndcg_at(ranks: Array, k: int) -> float:
    """Discounted gain 1 / log2(1 + rank) of relevant items among the first `k`, as a share of the best possible.

    Järvelin & Kekäläinen 2002, with items either relevant or not.
    """
    gain = (1 / np.log2(1 + ranks[ranks <= k])).sum()
    best = (1 / np.log2(1 + np.arange(1, min(k, len(ranks)) + 1))).sum()
    return float(gain / best)


def ranking_scores(ranks: Sequence[Array], cuts: Sequence[int] = CUTS) -> dict[str, Array]:
    """Each figure of each query, (queries,). `ranks[i]`: ranks of the relevant items of query i, at least one."""
    found: dict[str, Array] = {f"recall@{k}": np.array([recall_at(r, k) for r in ranks]) for k in cuts}
    found["mrr"] = np.array([reciprocal_rank(r) for r in ranks])
    found[f"ndcg@{max(cuts)}"] = np.array([ndcg_at(r, max(cuts)) for r in ranks])
    return found


def ranking_figures(ranks: Sequence[Array], cuts: Sequence[int] = CUTS) -> Figures:
    """Means over queries of `ranking_scores`."""
    if not ranks:
        return {name: Undefined(0, definition, "no queries") for name, definition in _definitions(cuts).items()}
    return {name: figure_of(measure) for name, measure in ranking_measures(ranks, cuts).items()}


def ranking_measures(ranks: Sequence[Array], cuts: Sequence[int] = CUTS) -> dict[str, Measure]:
    """The same as functions of sums over queries."""
    found, definitions = ranking_scores(ranks, cuts), _definitions(cuts)
    return {name: mean_measure(values, definitions[name]) for name, values in found.items()}


def _definitions(cuts: Sequence[int]) -> dict[str, str]:
    definitions = {f"recall@{k}": f"share of what belongs to a query that is among its first {k}" for k in cuts}
    definitions["mrr"] = "mean of 1 / rank of the first that belongs to the query"
    return definitions | {f"ndcg@{max(cuts)}": f"discounted gain of the first {max(cuts)}, as a share of the best possible"}

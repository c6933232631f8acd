"""Figures of rankings: recall@k, MRR and nDCG, with intervals over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from zenspeed.evaluate.interval import Array, Figures, Measure, Undefined, figure_of, mean_measure

CUTS = (1, 5, 10)


class Ranks(NamedTuple):
    """Ranks from 1 of what belongs to each query, at least one; inf for what was not found."""

    values: Array
    """Those of all queries, one query behind the other."""
    counts: NDArray[np.int32]
    """(queries,) of each."""

    @classmethod
    def of(cls, ranks: Sequence[Array]) -> Self:
        """`ranks[i]`: those of query i."""
        values = np.concatenate(ranks).astype(np.float64) if len(ranks) else np.zeros(0)
        return cls(values, np.array([len(r) for r in ranks], np.int32))

    @property
    def starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.counts[:-1], dtype=np.int64)])[: len(self.counts)]

    @property
    def first(self) -> Array:
        """(queries,) rank of the first that belongs to each."""
        return np.minimum.reduceat(self.values, self.starts)

    def take(self, queries: np.ndarray) -> Ranks:
        """The queries at these places."""
        counts = self.counts[queries]
        before = np.cumsum(counts, dtype=np.int64) - counts
        places = np.repeat(self.starts[queries] - before, counts) + np.arange(int(counts.sum()))
        return Ranks(self.values[places], counts)


def ranking_scores(ranks: Sequence[Array], cuts: Sequence[int] = CUTS) -> dict[str, Array]:
    """Each figure of each query, (queries,). `ranks[i]`: ranks of the relevant items of query i, at least one."""
    return _scores(Ranks.of(ranks), cuts)


def _scores(ranks: Ranks, cuts: Sequence[int]) -> dict[str, Array]:
    """recall@k: share of a query's items among its first k. MRR: 1 / rank of the first; 0 where none was found. nDCG@k:
    discounted gain 1 / log2(1 + rank) of the first k, as a share of the best possible (Järvelin & Kekäläinen 2002)."""
    starts, most = ranks.starts, max(cuts)
    found = {f"recall@{k}": np.add.reduceat((ranks.values <= k) * 1.0, starts) / ranks.counts for k in cuts}
    found["mrr"] = 1 / ranks.first
    gains = np.where(ranks.values <= most, 1 / np.log2(1 + ranks.values), 0.0)
    best = np.concatenate([[0.0], np.cumsum(1 / np.log2(1 + np.arange(1, most + 1)))])
    found[f"ndcg@{most}"] = np.add.reduceat(gains, starts) / best[np.minimum(ranks.counts, most)]
    return found


def ranking_figures(ranks: Ranks | Sequence[Array], cuts: Sequence[int] = CUTS) -> Figures:
    """Means over queries of `ranking_scores`."""
    if not len(ranks.counts if isinstance(ranks, Ranks) else ranks):
        return {name: Undefined(0, definition, "no queries") for name, definition in _definitions(cuts).items()}
    return {name: figure_of(measure) for name, measure in ranking_measures(ranks, cuts).items()}


def ranking_measures(ranks: Ranks | Sequence[Array], cuts: Sequence[int] = CUTS) -> dict[str, Measure]:
    """The same as functions of sums over queries."""
    found = _scores(ranks if isinstance(ranks, Ranks) else Ranks.of(ranks), cuts)
    definitions = _definitions(cuts)
    return {name: mean_measure(values, definitions[name]) for name, values in found.items()}


def _definitions(cuts: Sequence[int]) -> dict[str, str]:
    definitions = {f"recall@{k}": f"share of what belongs to a query that is among its first {k}" for k in cuts}
    definitions["mrr"] = "mean of 1 / rank of the first that belongs to the query"
    return definitions | {f"ndcg@{max(cuts)}": f"discounted gain of the first {max(cuts)}, as a share of the best possible"}

"""Where a classifier goes wrong: its most confident mistakes, the pairs it confuses, and texts whose labels contradict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from zenspeed.data.duplicates import near_earlier, same_as_earlier, sketch_all
from zenspeed.evaluate.classify import Confusion
from zenspeed.evaluate.predictions import Predictions
from zenspeed.evaluate.rowfile import part_of
from zenspeed.evaluate.slices import text_of
from zenspeed.evaluate.written import answer_tokens, token_f1

_SHOWN = 300
_MOST_TEXTS = 200_000


def mistakes_of(predictions: Predictions, count: int) -> list[dict[str, Any]]:
    """The `count` worst rows: `row` from 1, text, truth, prediction; of labels by `confidence`, of texts by lowest token F1, of
    rankings by the worst `rank`."""
    if predictions.kind == "ranks":
        return _worst_ranks(predictions, count)
    if predictions.kind == "labels":
        wrong = np.flatnonzero(predictions.labels.truth != predictions.labels.said)
        weight, name = _confidences(predictions, wrong), "confidence"
    elif predictions.kind == "numbers":
        truth, said = predictions.numbers
        wrong, weight, name = np.arange(len(truth)), np.abs(truth - said), "error"
    else:
        n = predictions.n
        wrong, weight, name = np.arange(n), np.fromiter(map(_disagreement, predictions.rows), np.float64, n), "token_f1"
    worst = np.argsort(-weight, kind="stable")[:count]
    return [_shown(predictions, int(wrong[i]), name, abs(float(weight[i]))) for i in worst]


def _confidences(p: Predictions, wrong: np.ndarray) -> np.ndarray:
    """(wrong,) the score of each answer; 0 where it has none."""
    names, said, scored, scores = p.labels.names, p.labels.said[wrong], p.labels.scored, p.labels.scores
    if scored is not None:
        number = {label: i for i, label in enumerate(scored)}
        column = np.array([number.get(str(name), -1) for name in names])[said]
        return np.where(column >= 0, scores[wrong, column], 0.0)
    if "scores" not in p.rows[0]:
        return np.zeros(len(wrong))
    rows = part_of(p.rows, wrong)  # of other labels in other rows
    return np.array([row.get("scores", {}).get(str(names[i]), 0.0) for row, i in zip(rows, said, strict=True)])


def _disagreement(row: dict[str, Any]) -> float:
    reference = row["reference"] if isinstance(row["reference"], str) else row["reference"][0]
    return -token_f1(answer_tokens(reference), answer_tokens(row["prediction"]))


def _worst_ranks(p: Predictions, count: int) -> list[dict[str, Any]]:
    worst = np.argsort(-p.ranks.first, kind="stable")[:count]
    rows = zip(worst.tolist(), part_of(p.rows, worst), strict=True)
    return [{"row": i + 1, **_cut({"text": text_of(row)}), "rank": row["rank"]} for i, row in rows]


def _shown(p: Predictions, i: int, name: str, value: float) -> dict[str, Any]:
    shown = {"text": text_of(p.rows[i]), p.truth: p.right(i), "prediction": p.answer(i)}
    return {"row": i + 1, **_cut(shown), name: value}


def _cut(shown: dict[str, Any]) -> dict[str, Any]:
    return {k: v[:_SHOWN] if isinstance(v, str) else v for k, v in shown.items()}


def confused_pairs(matrix: Confusion, count: int) -> list[dict[str, Any]]:
    """Labels taken for others, the most frequent first: `label`, `prediction`, `n`, and `share` of the label's rows."""
    counts = matrix.counts.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:count]
    found = []
    for true, said in zip(*np.unravel_index(order, counts.shape), strict=True):
        n = int(counts[true, said])
        if n:
            share = n / int(matrix.counts[true].sum())
            found.append({"label": matrix.labels[true], "prediction": matrix.labels[said], "n": n, "share": share})
    return found


def contradictions(predictions: Predictions, count: int) -> dict[str, Any]:
    """Equal or nearly equal texts with different labels: `n` of them, and the first `count` as `pairs`."""
    n = min(predictions.n, _MOST_TEXTS)
    filled = np.zeros(n, np.bool_)

    def texts() -> Iterator[str]:
        for i, row in enumerate(itertools.islice(predictions.rows, n)):
            text = text_of(row)
            filled[i] = bool(text)
            yield text

    sketches = sketch_all(texts())
    if not filled.any():
        return {"n": 0, "pairs": []}
    first, near = same_as_earlier(sketches.exact), near_earlier(sketches)
    # A copy differs from its first; a text that is nearly another differs from that.
    partner = np.where(first != np.arange(n), first, near)
    truth = predictions.labels.truth
    found = np.flatnonzero((partner >= 0) & filled & (truth[:n] != truth[partner]))
    pairs = []
    for i, j in zip(found[:count].tolist(), partner[found[:count]].tolist(), strict=True):
        one, other = ({"label": predictions.right(k), "text": text_of(predictions.rows[k])[:_SHOWN]} for k in (i, j))
        pairs.append({"row": i + 1, **one, "other_row": j + 1, **{f"other_{key}": value for key, value in other.items()}})
    return {"n": len(found), "pairs": pairs}

"""Where a classifier goes wrong: its most confident mistakes, the pairs it confuses, and texts whose labels contradict."""

from __future__ import annotations

from typing import Any

import numpy as np

from zenspeed.data.duplicates import near_earlier, same_as_earlier, sketch_all
from zenspeed.evaluate.classify import Confusion
from zenspeed.evaluate.predictions import Predictions, ranks_of
from zenspeed.evaluate.slices import text_of
from zenspeed.evaluate.written import answer_tokens, token_f1

_SHOWN = 300
_MOST_TEXTS = 200_000


def mistakes_of(predictions: Predictions, count: int) -> list[dict[str, Any]]:
    """The `count` worst rows: `row` from 1, text, truth, prediction; of labels by `confidence`, of texts by lowest token F1, of
    rankings by the worst `rank`."""
    if predictions.kind == "ranks":
        return _worst_ranks(predictions, count)
    truth, answers = predictions.column(predictions.truth), predictions.column("prediction")
    rows = predictions.rows
    if predictions.kind == "labels":
        wrong = [i for i, (t, a) in enumerate(zip(truth, answers, strict=True)) if t != a]
        weight = np.array([rows[i].get("scores", {}).get(str(answers[i]), 0.0) for i in wrong])
        name = "confidence"
    elif predictions.kind == "numbers":
        weight, name = np.abs(np.array(truth) - np.array(answers)), "error"
        wrong = list(range(len(rows)))
    else:
        texts = [t if isinstance(t, str) else t[0] for t in truth]
        pairs = zip(texts, answers, strict=True)
        weight, name = np.array([-token_f1(answer_tokens(t), answer_tokens(a)) for t, a in pairs]), "token_f1"
        wrong = list(range(len(rows)))
    worst = np.argsort(-weight, kind="stable")[:count]
    return [_shown(predictions, wrong[i], name, abs(float(weight[i]))) for i in worst]


def _worst_ranks(p: Predictions, count: int) -> list[dict[str, Any]]:
    first = np.array([ranks.min() for ranks in ranks_of(p)])
    worst = np.argsort(-first, kind="stable")[:count].tolist()
    return [{"row": i + 1, **_cut({"text": text_of(p.rows[i])}), "rank": p.rows[i]["rank"]} for i in worst]


def _shown(p: Predictions, i: int, name: str, value: float) -> dict[str, Any]:
    row = p.rows[i]
    shown = {"text": text_of(row), p.truth: row[p.truth], "prediction": row["prediction"]}
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
    rows = predictions.rows[:_MOST_TEXTS]
    texts = [text_of(row) for row in rows]
    if not any(texts):
        return {"n": 0, "pairs": []}
    sketches = sketch_all(texts)
    first, near = same_as_earlier(sketches.exact), near_earlier(sketches)
    # A copy differs from its first; a text that is nearly another differs from that.
    partner = np.where(first != np.arange(len(texts)), first, near)
    found = [(i, int(j)) for i, j in enumerate(partner) if j >= 0 and texts[i] and rows[i]["label"] != rows[int(j)]["label"]]
    pairs = [
        {
            "row": i + 1,
            "label": rows[i]["label"],
            "text": texts[i][:_SHOWN],
            "other_row": j + 1,
            "other_label": rows[j]["label"],
            "other_text": texts[j][:_SHOWN],
        }
        for i, j in found[:count]
    ]
    return {"n": len(found), "pairs": pairs}

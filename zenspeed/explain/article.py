"""The worked example of the article, section 4.3, with its arithmetic done: what it says, and what its own numbers give.

Two heads, three words of four numbers, two numbers of position put behind them. `claims` takes each line as it stands, with the
numbers that the article has at that point; `consistent` goes through the same example from the beginning to the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zenspeed.explain.trace import Trace

WORDS = ["word 1", "word 2", "word 3"]
EMBEDDINGS = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 0.1, 0.2, 0.3]]
POSITIONS = [[0.0, 0.1], [0.5, 0.0], [0.0, 0.1]]
QUERY, KEY, VALUE = ([1, 2], [3, 4]), ([5, 6], [7, 8]), ([9, 10], [11, 12])
"""W of each, for the two heads."""
W1, B1, W2, B2 = [1, 2], [3, 4], [5, 6], [7, 8]
OUT = [1, 2, 3, 4]


class Claim(NamedTuple):
    """One line of the article."""

    line: str
    article: list[float]
    right: list[float]
    """What the numbers of that line give."""
    why: str

    @property
    def holds(self) -> bool:
        return len(self.article) == len(self.right) and bool(torch.allclose(_t(self.article), _t(self.right), atol=5e-4))


def claims() -> list[Claim]:
    """Every computed line, with the numbers that the article itself has before it."""
    q1, q2, k1, k2, v1, v2 = map(_t, ([2, 4], [12, 16], [25, 30], [35, 40], [45, 50], [55, 60]))
    word1, word2 = (_t([*e, *p]) for e, p in zip(EMBEDDINGS[:2], POSITIONS[:2], strict=True))
    no_shape = "a row of 2 does not multiply a vector of 6; as six equal rows it gives this"
    scale = "and the formula divides by √2, which the article leaves out"
    found = [
        Claim(f"{name} = {weight} · v_{number}", said, list((word.sum() * _t(weight)).tolist()), no_shape)
        for name, weight, number, word, said in (
            ("Q_1", QUERY[0], 1, word1, [2.0, 4.0]), ("Q_2", QUERY[1], 2, word2, [12.0, 16.0]),
            ("K_1", KEY[0], 1, word1, [25.0, 30.0]), ("K_2", KEY[1], 2, word2, [35.0, 40.0]),
            ("V_1", VALUE[0], 1, word1, [45.0, 50.0]), ("V_2", VALUE[1], 2, word2, [55.0, 60.0]),
        )
    ]  # fmt: skip
    for name, q, k, number in (("Q_1 K_1ᵀ", q1, k1, 125), ("Q_1 K_2ᵀ", q1, k2, 160), ("Q_2 K_1ᵀ", q2, k1, 375)):
        found.append(Claim(f"{name} = {_s(q)} · {_s(k)}", [float(number)], [float(q @ k)], scale))
    found.append(Claim(f"Q_2 K_2ᵀ = {_s(q2)} · {_s(k2)}", [520.0], [float(q2 @ k2)], scale))
    for scores, said in (([125.0, 160.0], [0.455, 0.545]), ([375.0, 520.0], [0.306, 0.694])):
        why = "scores that are 35 and more apart leave nothing to the smaller"
        found.append(Claim(f"softmax({_s(_t(scores))})", said, _t(scores).softmax(0).tolist(), why))
    for weights, v, said in (([0.455, 0.545], v1, [20.275, 27.25]), ([0.306, 0.694], v2, [16.83, 41.56])):
        why = "and it is not the formula: a weight belongs to a word and multiplies all of its V, then V are summed"
        found.append(Claim(f"{weights} times {_s(v)}, number by number", said, (_t(weights) * v).tolist(), why))
    why = "number by number; and the network stands behind the joined heads, not behind each of them"
    for head, said in (([20.275, 27.25], [56.875, 77.125]), ([16.83, 41.56], [61.325, 93.225])):
        found.append(Claim(f"FFN({head})", said, _feed_forward(_t(head)).tolist(), why))
    before = [56.875, 77.125, 61.325, 93.225]
    why = "number by number; as the product of a row and a column it is one number, whose softmax is 1"
    found.append(
        Claim(f"softmax({OUT} · {before})", [0.235, 0.279, 0.186, 0.3], (_t(OUT) * _t(before)).softmax(0).tolist(), why)
    )
    return found


def consistent() -> Trace:
    """The whole example in one reading: W of a head is its row six times, one below the other; the rest number by number."""
    trace = Trace()
    e = trace.add("input", "embedding", "e", _t(EMBEDDINGS), WORDS)
    p = trace.add("input", "positions", "P, as the article has them; those of words 1 and 3 are the same", _t(POSITIONS), WORDS)
    v = trace.add(
        "input", "with positions", "v = [e, P], side by side (its section 4.1 adds them)", torch.cat([e, p], 1), WORDS
    )
    results = []
    for head in range(2):
        name = f"head {head + 1}"
        q, k, value = (_times(v, rows[head]) for rows in (QUERY, KEY, VALUE))
        trace.add(name, "queries", f"Q = v · six rows {QUERY[head]}", q, WORDS)
        trace.add(name, "keys", f"K = v · six rows {KEY[head]}", k, WORDS)
        trace.add(name, "values", f"V = v · six rows {VALUE[head]}", value, WORDS)
        scores = trace.add(name, "scores", "Q Kᵀ / √2", q @ k.T / 2**0.5, WORDS, WORDS)
        weights = trace.add(name, "weights", "softmax", scores.softmax(1), WORDS, WORDS)
        results.append(trace.add(name, "result", "weights · V", weights @ value, WORDS))
    joined = trace.add("output", "heads side by side", "[head 1, head 2]", torch.cat(results, 1), WORDS)
    network = torch.cat([_feed_forward(joined[:, :2]), _feed_forward(joined[:, 2:])], 1)
    trace.add("output", "feed-forward", "max(0, x W_1 + b_1) W_2 + b_2", network, WORDS)
    trace.add("output", "probabilities", f"softmax({OUT} · x)", (network * _t(OUT)).softmax(1), WORDS)
    return trace


def _times(x: Tensor, row: list[int]) -> Tensor:
    return x @ _t(row).expand(x.shape[1], 2)


def _feed_forward(x: Tensor) -> Tensor:
    return (x * _t(W1) + _t(B1)).clamp(min=0) * _t(W2) + _t(B2)


def _t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _s(x: Tensor) -> str:
    return "[" + ", ".join(f"{v:g}" for v in x.tolist()) + "]"

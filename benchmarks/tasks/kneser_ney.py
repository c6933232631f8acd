"""Interpolated Kneser-Ney n-grams (Chen & Goodman 1999, with one discount an order), the language model to beat.

    p(w | h) = (max(c(h w) − d, 0) + d · N₁₊(h ·) · p(w | h')) / c(h ·)        h' is h without its first token

Counts of the highest order are of the text, those below are continuation counts: of how many tokens a gram was seen behind.
The lowest order is interpolated with 1 / V, so that every token has a probability. d = n₁ / (n₁ + 2 n₂) of each order.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np


class KneserNey:
    """Of one stream of token numbers; `vocab_size`: tokens that there are."""

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        words = tokens.tolist()
        counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        counts[order] = Counter(zip(*(words[i:] for i in range(order)), strict=False))
        for n in range(order, 1, -1):
            counts[n - 1] = Counter(gram[1:] for gram in counts[n])
        self.counts = counts
        self.totals: list[dict[tuple[int, ...], int]] = [{}]
        self.kinds: list[dict[tuple[int, ...], int]] = [{}]
        self.discounts = [0.0]
        for n in range(1, order + 1):
            totals: dict[tuple[int, ...], int] = defaultdict(int)
            kinds: dict[tuple[int, ...], int] = defaultdict(int)
            for gram, count in counts[n].items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            ones, twos = (sum(count == k for count in counts[n].values()) for k in (1, 2))
            self.totals.append(totals)
            self.kinds.append(kinds)
            self.discounts.append(ones / (ones + 2 * twos) if ones else 0.5)

    def probability(self, gram: tuple[int, ...]) -> float:
        """p(last | those before it), up to `order` tokens."""
        p = 1.0 / self.vocab_size
        for n in range(1, len(gram) + 1):
            part = gram[len(gram) - n :]
            if total := self.totals[n].get(part[:-1], 0):
                discount = self.discounts[n]
                count = max(self.counts[n].get(part, 0) - discount, 0.0)
                p = (count + discount * self.kinds[n][part[:-1]] * p) / total
        return p

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """−ln p of each token behind those before it, (n,)."""
        words = tokens.tolist()
        grams = (tuple(words[max(0, i - self.order + 1) : i + 1]) for i in range(len(words)))
        return np.array([-np.log(self.probability(gram)) for gram in grams])

"""BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework"): texts found by their words.

A passage's score is Σ over words of the query of idf · tf · (k1 + 1) / (tf + k1 · (1 − b + b · length / mean length)), with
idf = ln(1 + (N − n + ½) / (n + ½)) for a word in n of N passages. Each word's summands are kept, so that a query adds up a few
lists. Words are in lower case, Chinese is cut by jieba, and nothing is stemmed or left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Self

import numpy as np

from zenspeed.text.words import segment

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words by which a text is found."""
    return _WORD.findall(segment(text).lower())


class BM25:
    """Lists of a word's passages and summands, end to end.

    vocabulary: word → number. starts: (words + 1,) int64, where each word's list begins. passages: (entries,) int32.
    weights: (entries,) float32.
    """

    def __init__(
        self, vocabulary: dict[str, int], starts: np.ndarray, passages: np.ndarray, weights: np.ndarray, num_passages: int
    ) -> None:
        self.vocabulary, self.starts, self.passages, self.weights = vocabulary, starts, passages, weights
        self.num_passages = num_passages

    @classmethod
    def build(cls, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> Self:
        vocabulary: dict[str, int] = {}
        words: list[int] = []
        passages: list[int] = []
        counts: list[int] = []
        lengths = np.zeros(len(texts))
        for number, text in enumerate(texts):
            found = Counter(words_of(text))
            lengths[number] = found.total()
            words += [vocabulary.setdefault(word, len(vocabulary)) for word in found]
            passages += [number] * len(found)
            counts += found.values()
        word, passage, count = np.array(words, np.int64), np.array(passages, np.int32), np.array(counts, np.float64)
        order = np.argsort(word, kind="stable")
        word, passage, count = word[order], passage[order], count[order]
        entries = np.bincount(word, minlength=len(vocabulary))
        idf = np.log1p((len(texts) - entries + 0.5) / (entries + 0.5))
        relative = lengths / max(lengths.mean(), 1e-9) if len(texts) else lengths
        weights = idf[word] * count * (k1 + 1) / (count + k1 * (1 - b + b * relative[passage]))
        starts = np.concatenate([[0], np.cumsum(entries)])
        return cls(vocabulary, starts, passage, weights.astype(np.float32), len(texts))

    def scores(self, query: str) -> np.ndarray:
        """(passages,) float32 of a query; a word that is twice in it counts twice."""
        out = np.zeros(self.num_passages, np.float32)
        for word, count in Counter(words_of(query)).items():
            if (number := self.vocabulary.get(word)) is not None:
                part = slice(self.starts[number], self.starts[number + 1])
                out[self.passages[part]] += count * self.weights[part]
        return out

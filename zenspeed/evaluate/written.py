"""Figures of written answers against references: exact match, token F1, BLEU, chrF, TER and ROUGE.

BLEU, chrF and TER are functions of sums over rows (matched n-grams, lengths, edits), which sacrebleu counts; so their intervals
come from resampling rows, and no row is scored twice.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zenspeed.evaluate.interval import Array, Figures, Measure, Undefined, figure_of, mean_measure, wilson

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation + "，。、；：？！“”‘’（）《》〈〉【】…—·"))
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
Reference = str | list[str]
"""Or several, any of which will do."""


def answer_tokens(text: str) -> list[str]:
    """Lower case without punctuation and English articles (as SQuAD's evaluation); each Chinese character is a token."""
    return _WORDS.findall(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)))


def written_figures(references: Sequence[Reference], predictions: Sequence[str]) -> Figures:
    """Every written measure with its interval; exact match with Wilson's."""
    n = len(references)
    figures: Figures = {}
    empty = not any(map(any, map(_listed, references)))
    for name, measure in written_measures(references, predictions).items():
        if name == "exact_match":
            figures[name] = wilson(int(measure.statistics[:, 0].sum()), n, measure.definition)
        elif empty and name not in ("token_f1", "length_ratio"):
            figures[name] = Undefined(n, measure.definition, "every reference is empty")
        else:
            figures[name] = figure_of(measure, "every reference is empty")
    return figures


def written_measures(
    references: Sequence[Reference], predictions: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[str, Measure]:
    """Exact match, token F1, BLEU, chrF, TER, ROUGE-1, -2, -L, ratio of lengths. wanted: names of those to count; None: all."""
    several = [_listed(r) for r in references]
    chinese = any(_CHINESE.search(text) for texts in several for text in texts)
    makers: dict[str, Callable[[], Measure]] = {
        "exact_match": lambda: _exact(several, predictions),
        "token_f1": lambda: _token_f1(several, predictions),
        **{name: _of_sacrebleu(name, several, predictions, chinese) for name in ("bleu", "chrf", "ter")},
        **{name: _of_rouge(name, several, predictions, chinese) for name in _ROUGE},
        "length_ratio": lambda: _lengths(several, predictions),
    }
    return {name: make() for name, make in makers.items() if wanted is None or name in wanted}


def _listed(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else reference


def _exact(references: list[list[str]], predictions: Sequence[str]) -> Measure:
    right = [
        answer_tokens(p) in [answer_tokens(text) for text in texts] for texts, p in zip(references, predictions, strict=True)
    ]
    return mean_measure(np.array(right, np.float64), "share of answers equal to the reference, normalised")


def _token_f1(references: list[list[str]], predictions: Sequence[str]) -> Measure:
    values = [
        max(token_f1(answer_tokens(text), answer_tokens(p)) for text in texts)
        for texts, p in zip(references, predictions, strict=True)
    ]
    definition = "mean over rows of F1 between tokens of answer and reference, normalised; of several references the best"
    return mean_measure(np.array(values), definition)


def _lengths(references: list[list[str]], predictions: Sequence[str]) -> Measure:
    pairs = [(len(p), len(texts[0])) for texts, p in zip(references, predictions, strict=True)]
    statistics = np.array(pairs, np.float64).reshape(-1, 2)
    return Measure(statistics, lambda s: s[:, 0] / np.where(s[:, 1] > 0, s[:, 1], np.nan), "characters answered over asked for")


def token_f1(reference: list[str], answer: list[str]) -> float:
    """Harmonic mean of precision and recall of tokens, with multiplicity; two empty ones agree."""
    if not reference or not answer:
        return float(reference == answer)
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))


def _of_sacrebleu(name: str, references: list[list[str]], predictions: Sequence[str], chinese: bool) -> Callable[[], Measure]:
    def make() -> Measure:
        from sacrebleu.metrics import BLEU, CHRF, TER

        metric: Any
        if name == "bleu":
            metric = BLEU(tokenize="zh" if chinese else "13a")
        else:
            metric = CHRF() if name == "chrf" else TER(asian_support=chinese)
        streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(max(map(len, references)))]
        metric.corpus_score(list(predictions[:1]), [stream[:1] for stream in streams])  # settles what the signature says
        statistics = np.array(metric._extract_corpus_statistics(list(predictions), streams), np.float64)

        def value(sums: Array) -> Array:
            return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])

        return Measure(statistics, value, f"sacrebleu, {metric.get_signature()}", higher_is_better=name != "ter")

    return make


class _Characters:
    """Words for rouge-score, whose own take nothing but Latin letters."""

    def tokenize(self, text: str) -> list[str]:
        return answer_tokens(text)


def _of_rouge(name: str, references: list[list[str]], predictions: Sequence[str], chinese: bool) -> Callable[[], Measure]:
    def make() -> Measure:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([name], tokenizer=_Characters() if chinese else None)
        rows = zip(references, predictions, strict=True)
        values = [scorer.score_multi(texts, p)[name].fmeasure for texts, p in rows]
        by = "characters of Chinese and words" if chinese else "words"
        return mean_measure(np.array(values), f"mean over rows of {_ROUGE[name]}'s F1 by {by}, rouge-score, no stemming")

    return make


def num_words(text: str) -> int:
    """Words of a text; each Chinese character is one."""
    return len(_WORDS.findall(text))


def length_figures(asked: Sequence[int], predictions: Sequence[str]) -> Figures:
    """How well lengths in words that were asked for were kept."""
    errors = np.array([abs(num_words(p) - n) / n for n, p in zip(asked, predictions, strict=True)])
    meaning = "mean over rows of |words − words asked for| / words asked for"
    within = "share of rows with a length within 20 % of what was asked for"
    return {
        "length_error": figure_of(mean_measure(errors, meaning), "no rows"),
        "length_kept": wilson(int((errors <= 0.2).sum()), len(errors), within),
    }

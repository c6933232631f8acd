"""Figures of written answers against references: exact match, token F1, BLEU, chrF, TER and ROUGE.

BLEU, chrF and TER are functions of sums over rows (matched n-grams, lengths, edits), which sacrebleu counts; so their intervals
come from resampling rows, and no row is scored twice.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from zenspeed.evaluate.interval import (
    MOST_UNITS,
    Array,
    Figures,
    Measure,
    Undefined,
    figure_of,
    groups_of,
    mean_measure,
    wilson,
)

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation + "，。、；：？！“”‘’（）《》〈〉【】…—·"))
_ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
Reference = str | list[str]
"""Or several, any of which will do."""


def answer_tokens(text: str) -> list[str]:
    """Lower case without punctuation and English articles (as SQuAD's evaluation); each Chinese character is a token."""
    return _WORDS.findall(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)))


def has_chinese(text: str) -> bool:
    """Whether any of its characters is Chinese."""
    return _CHINESE.search(text) is not None


class Pairs(NamedTuple):
    """Answers with their references, read a chunk at a time for each measure, so that none is held."""

    n: int
    chunks: Callable[[], Iterable[tuple[list[list[str]], list[str]]]]
    """(references of each row, its answer)"""
    chinese: bool
    """Any reference has Chinese in it: all are counted by characters of it."""
    references: Sequence[int]
    """Numbers of references that rows have, each once."""
    empty: bool
    """Every reference is."""


def pairs_of(references: Sequence[Reference], predictions: Sequence[str]) -> Pairs:
    """Of texts that are held anyway."""
    several = [_listed(r) for r in references]
    chinese = any(has_chinese(text) for texts in several for text in texts)
    sizes = sorted({len(texts) for texts in several})
    return Pairs(len(several), lambda: [(several, list(predictions))], chinese, sizes, not any(map(any, several)))


def written_figures(references: Sequence[Reference], predictions: Sequence[str]) -> Figures:
    """Every written measure with its interval; exact match with Wilson's."""
    return figures_of_pairs(pairs_of(references, predictions))


def figures_of_pairs(pairs: Pairs) -> Figures:
    """The same of texts that are read."""
    figures: Figures = {}
    for name, make in _makers(pairs).items():
        measure = make()  # one at a time
        if name == "exact_match":
            figures[name] = wilson(int(measure.statistics[:, 0].sum()), pairs.n, measure.definition)
        elif pairs.empty and name not in ("token_f1", "length_ratio"):
            figures[name] = Undefined(pairs.n, measure.definition, "every reference is empty")
        else:
            figures[name] = figure_of(measure, "every reference is empty")
    return figures


def written_measures(
    references: Sequence[Reference], predictions: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[str, Measure]:
    """Exact match, token F1, BLEU, chrF, TER, ROUGE-1, -2, -L, ratio of lengths. wanted: names of those to count; None: all."""
    return measures_of_pairs(pairs_of(references, predictions), wanted)


def measures_of_pairs(pairs: Pairs, wanted: Sequence[str] | None = None) -> dict[str, Measure]:
    """The same of texts that are read."""
    return {name: make() for name, make in _makers(pairs).items() if wanted is None or name in wanted}


def _makers(pairs: Pairs) -> dict[str, Callable[[], Measure]]:
    return {
        "exact_match": lambda: _exact(pairs),
        "token_f1": lambda: _token_f1(pairs),
        **{name: partial(_of_sacrebleu, name, pairs) for name in ("bleu", "chrf", "ter")},
        **{name: partial(_of_rouge, name, pairs) for name in _ROUGE},
        "length_ratio": lambda: _lengths(pairs),
    }


def _listed(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else reference


def _by_row(pairs: Pairs, value: Callable[[list[str], str], float]) -> Array:
    """(n,) the value of each row."""
    rows = ((texts, p) for several, answers in pairs.chunks() for texts, p in zip(several, answers, strict=True))
    return np.fromiter((value(texts, p) for texts, p in rows), np.float64, pairs.n)


def _exact(pairs: Pairs) -> Measure:
    def right(texts: list[str], p: str) -> float:
        return answer_tokens(p) in [answer_tokens(text) for text in texts]

    return mean_measure(_by_row(pairs, right), "share of answers equal to the reference, normalised")


def _token_f1(pairs: Pairs) -> Measure:
    def best(texts: list[str], p: str) -> float:
        return max(token_f1(answer_tokens(text), answer_tokens(p)) for text in texts)

    definition = "mean over rows of F1 between tokens of answer and reference, normalised; of several references the best"
    return mean_measure(_by_row(pairs, best), definition)


def _lengths(pairs: Pairs) -> Measure:
    statistics = _summed(pairs, lambda several, answers: [(len(p), len(t[0])) for t, p in zip(several, answers, strict=True)])
    return Measure(
        statistics,
        lambda s: s[:, 0] / np.where(s[:, 1] > 0, s[:, 1], np.nan),
        "characters answered over asked for",
        rows=pairs.n,
    )


def _summed(pairs: Pairs, count: Callable[[list[list[str]], list[str]], Any]) -> Array:
    """(groups, k): what is counted in each row, (rows of a chunk, k), added up by group."""
    groups, start, sums = groups_of(pairs.n), 0, np.zeros((0, 0))
    for several, answers in pairs.chunks():
        counted = np.array(count(several, answers), np.float64)
        if not start:
            sums = np.zeros((min(pairs.n, MOST_UNITS), counted.shape[1]))
        np.add.at(sums, groups[start : start + len(counted)], counted)
        start += len(counted)
    return sums


def token_f1(reference: list[str], answer: list[str]) -> float:
    """Harmonic mean of precision and recall of tokens, with multiplicity; two empty ones agree."""
    if not reference or not answer:
        return float(reference == answer)
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))


def _of_sacrebleu(name: str, pairs: Pairs) -> Measure:
    from sacrebleu.metrics import BLEU, CHRF, TER

    metric: Any
    if name == "bleu":
        metric = BLEU(tokenize="zh" if pairs.chinese else "13a")
    else:
        metric = CHRF() if name == "chrf" else TER(asian_support=pairs.chinese)

    def count(several: list[list[str]], answers: list[str]) -> Any:
        streams = [[texts[i] if i < len(texts) else None for texts in several] for i in range(max(map(len, several)))]
        if "num_refs" not in metric.__dict__ or metric.num_refs is None:
            metric.corpus_score(answers[:1], [stream[:1] for stream in streams])  # settles what the signature says
        return metric._extract_corpus_statistics(answers, streams)

    statistics = _summed(pairs, count)
    # Of each chunk sacrebleu notes its own numbers of references; the signature is to name those of all.
    metric.num_refs = pairs.references[0] if len(pairs.references) == 1 else -1

    def value(sums: Array) -> Array:
        return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])

    definition = f"sacrebleu, {metric.get_signature()}"
    return Measure(statistics, value, definition, higher_is_better=name != "ter", rows=pairs.n)


class _Characters:
    """Words for rouge-score, whose own take nothing but Latin letters."""

    def tokenize(self, text: str) -> list[str]:
        return answer_tokens(text)


def _of_rouge(name: str, pairs: Pairs) -> Measure:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], tokenizer=_Characters() if pairs.chinese else None)
    values = _by_row(pairs, lambda texts, p: float(scorer.score_multi(texts, p)[name].fmeasure))
    by = "characters of Chinese and words" if pairs.chinese else "words"
    return mean_measure(values, f"mean over rows of {_ROUGE[name]}'s F1 by {by}, rouge-score, no stemming")


def num_words(text: str) -> int:
    """Words of a text; each Chinese character is one."""
    return len(_WORDS.findall(text))


def length_figures(answers: Iterable[tuple[int, str]]) -> Figures:
    """How well lengths in words were kept, of pairs of what was asked for and the text."""
    errors = np.array([abs(num_words(text) - asked) / asked for asked, text in answers])
    meaning = "mean over rows of |words − words asked for| / words asked for"
    within = "share of rows with a length within 20 % of what was asked for"
    return {
        "length_error": figure_of(mean_measure(errors, meaning), "no rows"),
        "length_kept": wilson(int((errors <= 0.2).sum()), len(errors), within),
    }

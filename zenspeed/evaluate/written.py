"""Figures of written answers against references: exact match, token F1, BLEU, chrF and TER."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from zenspeed.evaluate.classify import Undefined, wilson
from zenspeed.evaluate.interval import Figure, ratio_interval

_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation + "，。、；：？！“”‘’（）《》〈〉【】…—·"))


def answer_tokens(text: str) -> list[str]:
    """Lower case without punctuation and English articles (as SQuAD's evaluation); each Chinese character is a token."""
    return _WORDS.findall(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)))


def written_figures(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Figure | Undefined]:
    """Exact match and token F1 with intervals; BLEU, chrF and TER of sacrebleu, whose signature is in the definition."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    n = len(references)
    pairs = [(answer_tokens(r), answer_tokens(p)) for r, p in zip(references, predictions, strict=True)]
    f1 = np.array([token_f1(r, p) for r, p in pairs])
    figures: dict[str, Figure | Undefined] = {
        "exact_match": wilson(sum(r == p for r, p in pairs), n, "share of answers equal to the reference, normalised"),
        "token_f1": ratio_interval(f1, np.ones(n), "mean over rows of F1 between tokens of answer and reference, normalised"),
    }
    tokenize = "zh" if any(_CHINESE.search(r) for r in references) else "13a"
    for name, metric in {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF(), "ter": TER(asian_support=tokenize == "zh")}.items():
        value = metric.corpus_score(list(predictions), [list(references)]).score
        definition = f"sacrebleu, {metric.get_signature()}"
        if any(references):
            figures[name] = Figure(value, None, None, n, definition, "of the corpus as a whole; not resampled")
        else:
            figures[name] = Undefined(n, definition, "every reference is empty")
    return figures


def token_f1(reference: list[str], answer: list[str]) -> float:
    """Harmonic mean of precision and recall of tokens, with multiplicity; two empty ones agree."""
    if not reference or not answer:
        return float(reference == answer)
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))

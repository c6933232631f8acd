"""Figures of answers to questions, some of which have none: exact match, token F1, and how often an answer is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval, wilson
from zenspeed.evaluate.written import answer_tokens, token_f1


def answer_scores(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) exact match and (n,) token F1 of each answer, against the best of its references, as SQuAD's evaluation.

    No references: the question has no answer, and only an empty prediction is right (Rajpurkar et al. 1806.03822).
    """
    exact, f1 = np.zeros(len(predictions)), np.zeros(len(predictions))
    for i, (accepted, prediction) in enumerate(zip(references, predictions, strict=True)):
        said = answer_tokens(prediction)
        if not accepted:
            exact[i] = f1[i] = float(not prediction.strip())
        elif prediction.strip():
            found = [_agree(text, prediction, said) for text in accepted]
            exact[i], f1[i] = max(e for e, _ in found), max(f for _, f in found)
    return exact, f1


def _agree(reference: str, prediction: str, said: list[str]) -> tuple[float, float]:
    wanted = answer_tokens(reference)
    if not wanted:  # punctuation alone, which is right to the letter only
        same = float(reference.strip() == prediction.strip())
        return same, same
    return float(wanted == said), token_f1(wanted, said)


def answer_figures(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, Figure | Undefined]:
    """Exact match and F1 over all questions; refusals of questions without an answer (right) and with one (wrong)."""
    exact, f1 = answer_scores(references, predictions)
    n, refused = len(predictions), [not prediction.strip() for prediction in predictions]
    without = [r for r, accepted in zip(refused, references, strict=True) if not accepted]
    figures: dict[str, Figure | Undefined] = {
        "exact_match": wilson(int(exact.sum()), n, "share of answers equal to a reference, normalised"),
        "token_f1": ratio_interval(f1, np.ones(n), "mean of F1 between tokens of the answer and its best reference")
        if n
        else Undefined(0, "mean of F1 between tokens of the answer and its best reference", "no questions"),
    }
    if without:
        figures["refused_rightly"] = wilson(
            sum(without), len(without), "share of questions without an answer to which none is given"
        )
        figures["refused_wrongly"] = wilson(
            sum(refused) - sum(without), n - len(without), "share of questions with an answer to which none is given"
        )
    return figures

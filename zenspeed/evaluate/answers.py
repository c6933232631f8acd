"""Figures of answers to questions, some of which have none: exact match, token F1, and how often an answer is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval, wilson
from zenspeed.evaluate.written import answer_tokens, token_f1


def answer_scores(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) exact match and (n,) token F1 of each answer, against the best of its references, as SQuAD's evaluation.

    No references: the question has no answer, and only an empty prediction is right (Rajpurkar et al. 1806.03822).
    """
    pairs = zip(references, predictions, strict=True)
    scores = np.fromiter((_score(*pair) for pair in pairs), np.dtype((np.float64, 2)))
    return scores[:, 0], scores[:, 1]


def _score(accepted: Sequence[str], prediction: str) -> tuple[float, float]:
    if not accepted:
        return (float(not prediction.strip()),) * 2
    if not prediction.strip():
        return 0.0, 0.0
    said = answer_tokens(prediction)
    found = [_agree(text, prediction, said) for text in accepted]
    return max(e for e, _ in found), max(f for _, f in found)


def _agree(reference: str, prediction: str, said: list[str]) -> tuple[float, float]:
    wanted = answer_tokens(reference)
    if not wanted:  # punctuation alone, which is right to the letter only
        same = float(reference.strip() == prediction.strip())
        return same, same
    return float(wanted == said), token_f1(wanted, said)


def answer_figures(answers: Iterable[tuple[Sequence[str], str]]) -> dict[str, Figure | Undefined]:
    """Exact match and F1 over all questions; refusals of questions without an answer (right) and with one (wrong).

    answers: the references of each question, none where it has no answer, and what was said.
    """
    found = ((*_score(accepted, said), not said.strip(), not accepted) for accepted, said in answers)
    exact, f1, refused, unanswerable = np.fromiter(found, np.dtype((np.float64, 4))).T
    n, without = len(exact), refused[unanswerable > 0]
    figures: dict[str, Figure | Undefined] = {
        "exact_match": wilson(int(exact.sum()), n, "share of answers equal to a reference, normalised"),
        "token_f1": ratio_interval(f1, np.ones(n), "mean of F1 between tokens of the answer and its best reference")
        if n
        else Undefined(0, "mean of F1 between tokens of the answer and its best reference", "no questions"),
    }
    if len(without):
        figures["refused_rightly"] = wilson(
            int(without.sum()), len(without), "share of questions without an answer to which none is given"
        )
        figures["refused_wrongly"] = wilson(
            int(refused.sum() - without.sum()), n - len(without), "share of questions with an answer to which none is given"
        )
    return figures

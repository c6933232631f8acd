"""Answers out of an index: find passages, then read the answer in one of them, or say that there is none.

With a reader (a run of task `span_qa`) the answer is a span of a passage, with its place in the document. Without one the
documents are questions with a column `answer`, and the answer is that of the nearest question. Either way an answer whose score
is below a threshold is not given; `calibrate` chooses it on questions whose answers are known. As a rule few of them have no
answer, so each is asked twice: of all passages, and of those that do not hold its answer (`hits_without_answer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.evaluate.answers import answer_figures, answer_scores
from zenspeed.evaluate.interval import Figure, Undefined
from zenspeed.evaluate.ranking import ranking_figures
from zenspeed.retrieve.embed import Reader
from zenspeed.retrieve.index import Hit, How, Index
from zenspeed.tasks.base import place_of

_HOLD_ANSWER = 100  # passages that may hold an answer and be left out, of documents that are not known to hold it


class Found(NamedTuple):
    """What came of a question. `answer` is empty where none is given."""

    question: str
    answer: str
    score: float
    """Of the likeliest answer, given or not: of a reader, 0 … 1, see `_joined`; else the score of the nearest question."""
    best: str
    """The likeliest answer, given or not."""
    document: str | None
    start: int | None
    end: int | None
    """Place of the likeliest answer in its document, in characters; None without a reader."""
    hits: list[Hit]

    @property
    def found(self) -> bool:
        return bool(self.answer)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: as predictions of a task, and the passages that were looked at."""
        place = {"document": self.document, "start": self.start, "end": self.end} if self.found else {}
        given = {"question": self.question, "prediction": self.answer, "found": self.found, "score": round(self.score, 6)}
        return given | place | {"passages": [hit.as_dict() for hit in self.hits]}


def answer(
    index: Index,
    questions: Sequence[str],
    reader: Reader | None = None,
    *,
    k: int = 5,
    how: How | None = None,
    refuse_below: float | None = None,
    hits: list[list[Hit]] | None = None,
) -> list[Found]:
    """The answers to questions, in their order.

    Args:
        k: passages that are read. how: as of `Index.search`. hits: passages of each question to read in the place of a search.
        refuse_below: score; default: that of the index, and where it has none, 0 (a reader refuses by itself where "no answer"
            is likelier than its best).

    Raises:
        InputError: without a reader, if the documents have no column `answer`.
    """
    hits = index.search(questions, k, how) if hits is None else hits
    found = _read(questions, hits, reader) if reader else _stored(questions, hits)
    least = refuse_below if refuse_below is not None else index.refuse_below
    return [one._replace(answer=one.best if _is_given(one, least, reader) else "") for one in found]


def _is_given(one: Found, least: float | None, reader: Reader | None) -> bool:
    if least is None:
        return bool(one.answer) if reader else bool(one.best)
    return bool(one.best) and one.score >= least


def _read(questions: Sequence[str], hits: list[list[Hit]], reader: Reader) -> list[Found]:
    task = reader.task.recipe.task
    rows = [{task.question: q, task.context: hit.text} for q, own in zip(questions, hits, strict=True) for hit in own]
    spans = iter(reader.task.find(reader.model, rows, place_of(reader.task.recipe)) if rows else ())
    found = []
    for question, own in zip(questions, hits, strict=True):
        read = [(hit, span, _joined(span.score, hit.score)) for hit, span in ((hit, next(spans)) for hit in own)]
        if not read:
            found.append(Found(question, "", 0.0, "", None, None, None, own))
            continue
        hit, span, score = max(read, key=lambda one: one[2])
        place = (hit.document.id, hit.start + span.start, hit.start + span.end)
        found.append(Found(question, span.text if span.found else "", score, span.text, *place, own))
    return found


def _joined(probability: float, score: float) -> float:
    """The odds of an answer in its passage times the passage's own score (BM25 or a cosine), as a probability.

    A reader alone is as sure of a passage that happens to fit as of one that has the words of the question.
    """
    odds = probability * max(score, 1e-6)
    return odds / (1 - probability + odds)


def _stored(questions: Sequence[str], hits: list[list[Hit]]) -> list[Found]:
    found = []
    for question, own in zip(questions, hits, strict=True):
        if not own:
            found.append(Found(question, "", 0.0, "", None, None, None, own))
            continue
        first = max(own, key=lambda hit: hit.score)
        if "answer" not in first.document.fields:
            raise InputError(
                f"document {first.document.id!r} has no column 'answer'; give a reader: a run of task span_qa (--reader RUN)"
            )
        text = str(first.document.fields["answer"])
        found.append(Found(question, text, first.score, text, first.document.id, None, None, own))
    return found


def hits_without_answer(
    index: Index,
    questions: Sequence[str],
    references: Sequence[Sequence[str]],
    documents: Sequence[str | None] | None = None,
    k: int = 5,
    how: How | None = None,
) -> list[list[Hit]]:
    """The `k` best passages of each question when those that hold its answer are left out; none where it has no answer.

    Args: as of `judge`; where a document is known, all its passages are left out, which may say the answer in other words.
    """
    largest = int(np.bincount(index.passages.document).max())
    found = index.search(questions, k + max(largest, _HOLD_ANSWER), how)
    wanted = documents or [None] * len(questions)
    return [
        [hit for hit in own if not _holds(hit, accepted, document)][:k] if accepted else []
        for own, accepted, document in zip(found, references, wanted, strict=True)
    ]


class Threshold(NamedTuple):
    """A score below which no answer is given, and what came of it on the questions it was chosen on."""

    refuse_below: float
    answered: float
    """Share of the questions with an answer to which one is given, right or wrong."""
    f1: float
    """Mean F1 over the questions with an answer; a refusal is 0."""
    refused: float
    """Share of the questions without an answer to which none is given."""
    with_answer: int
    without_answer: int
    """Questions of either kind."""


def calibrate(
    found: Sequence[Found],
    references: Sequence[Sequence[str]],
    without: Sequence[Found] = (),
    *,
    keep: float | None = None,
) -> Threshold:
    """The `refuse_below` at which F1 over questions with an answer plus the share refused of those without one is highest.

    Both kinds weigh the same, however many there are of each: how many will have no answer in use is not known here.

    Args:
        without: the same questions, read in `hits_without_answer`. Left aside is what found no passage then, and what still
            gave the right answer, which so stands elsewhere too.
        keep: instead, the highest threshold that still gives this share of the F1 that is had without refusing.

    Raises:
        InputError: no questions, `keep` is not within 0 … 1.
    """
    if not found:
        raise InputError("calibrate: no questions; give some, with and without an answer")
    if keep is not None and not 0 <= keep <= 1:
        raise InputError(f"calibrate: keep {keep} is no share; give 0 to 1, such as 0.95")
    asked = [(one, accepted) for one, accepted in zip(found, references, strict=True)]
    if without:
        exact = answer_scores(references, [one.best for one in without])[0]
        again = zip(without, references, exact, strict=True)
        asked += [(one, []) for one, accepted, right in again if accepted and one.hits and not right]
    curve = _curve(asked)
    if keep is None:
        chosen = max(curve, key=lambda one: (one.f1 + one.refused, -one.refuse_below))
    else:
        chosen = max((one for one in curve if one.f1 >= keep * curve[-1].f1 - 1e-9), key=lambda one: one.refuse_below)
    return chosen


def _curve(asked: Sequence[tuple[Found, Sequence[str]]]) -> list[Threshold]:
    """What comes of every threshold that tells two questions apart, from nothing answered to everything."""
    scores = np.array([one.score for one, _ in asked])
    order = np.argsort(-scores, kind="stable")
    scores, has = scores[order], np.array([bool(accepted) for _, accepted in asked])[order]
    f1 = answer_scores([accepted for _, accepted in asked], [one.best for one, _ in asked])[1][order]
    number, none = int(has.sum()), int((~has).sum())

    def share_given(values: np.ndarray, of: int) -> np.ndarray:
        """(questions + 1,): of the best-scored i given and the rest refused, for each i."""
        return np.concatenate([[0.0], np.cumsum(values)]) / max(of, 1)

    answered, right, wrong = share_given(has, number), share_given(f1 * has, number), share_given(~has, none)
    below = np.concatenate([scores, [min(scores[-1], 0.0)]])  # i given: the first that is refused
    above = np.concatenate([[np.nextafter(scores[0], np.inf)], scores])
    edges = (above + below) / 2
    edges[0], edges[-1] = above[0], below[-1]
    possible = [i for i in range(len(edges)) if i in (0, len(scores)) or scores[i - 1] > scores[i]]  # equal ones go together
    return [
        Threshold(float(edges[i]), float(answered[i]), float(right[i]), float(1 - wrong[i]), number, none) for i in possible
    ]


def judge(
    found: Sequence[Found], references: Sequence[Sequence[str]], documents: Sequence[str | None] | None = None
) -> dict[str, Figure | Undefined]:
    """Exact match, F1, refusals; recall and MRR of the passages, over questions that have an answer.

    Args:
        references: accepted answers of each question, none where it has no answer.
        documents: id of the document that holds the answer; where None, a passage with the text of an answer is what belongs
            to the question.
    """
    ranks = []
    for i, (one, accepted) in enumerate(zip(found, references, strict=True)):
        if accepted:
            wanted = documents[i] if documents is not None else None
            ranks.append(np.array([_rank(one, accepted, wanted)]))
    k = max((len(one.hits) for one in found), default=1)
    cuts = tuple(cut for cut in (1, 3, 5, 10, 20) if cut <= k) or (1,)
    return answer_figures(zip(references, (one.answer for one in found), strict=True)) | ranking_figures(ranks, cuts)


def _rank(one: Found, accepted: Sequence[str], document: str | None) -> float:
    for rank, hit in enumerate(one.hits, 1):
        if _holds(hit, accepted, document):
            return float(rank)
    return np.inf


def _holds(hit: Hit, accepted: Sequence[str], document: str | None) -> bool:
    """Whether an answer stands in a passage: whether it is of its document, where that is known."""
    if document is not None:
        return hit.document.id == document
    here = hit.text + str(hit.document.fields.get("answer", ""))
    return any(text in here for text in accepted)

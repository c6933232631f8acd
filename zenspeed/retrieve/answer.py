"""Answers out of an index: find passages, then read the answer in one of them, or say that there is none.

With a reader (a run of task `span_qa`) the answer is a span of a passage, with its place in the document. Without one the
documents are questions with a column `answer`, and the answer is that of the nearest question. Either way an answer whose score
is below a threshold is not given; `calibrate` chooses it on questions whose answers are known, some of which have none.
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


class Found(NamedTuple):
    """What came of a question. `answer` is empty where none is given."""

    question: str
    answer: str
    score: float
    """Of the likeliest answer, given or not: its probability in its passage, or the score of the nearest question."""
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
) -> list[Found]:
    """The answers to questions, in their order.

    Args:
        k: passages that are read. how: as of `Index.search`.
        refuse_below: score; default: that of the index, and where it has none, 0 (a reader refuses by itself where "no answer"
            is likelier than its best).

    Raises:
        InputError: without a reader, if the documents have no column `answer`.
    """
    hits = index.search(questions, k, how)
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
        read = [(hit, next(spans)) for hit in own]
        if not read:
            found.append(Found(question, "", 0.0, "", None, None, None, own))
            continue
        hit, span = max(read, key=lambda pair: pair[1].score)
        place = (hit.document.id, hit.start + span.start, hit.start + span.end)
        found.append(Found(question, span.text if span.found else "", span.score, span.text, *place, own))
    return found


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


def calibrate(found: Sequence[Found], references: Sequence[Sequence[str]]) -> float:
    """The `refuse_below` with the highest mean F1, where refusing a question without an answer counts 1.

    Raises:
        InputError: no questions.
    """
    if not found:
        raise InputError("calibrate: no questions; give some, with and without an answer")
    scores = np.array([one.score for one in found])
    given = answer_scores(references, [one.best for one in found])[1]
    refused = np.array([float(not accepted) for accepted in references])
    order = np.argsort(-scores, kind="stable")
    # Of the best-scored i answers given and the rest refused, for each i.
    totals = (
        np.concatenate([[0.0], np.cumsum(given[order])]) + refused.sum() - np.concatenate([[0.0], np.cumsum(refused[order])])
    )
    edges = np.concatenate([[np.inf], scores[order]])
    possible = np.append(edges[:-1] > edges[1:], True)  # equal scores are given together
    best = int(np.flatnonzero(possible & (totals == totals[possible].max()))[-1])
    if best == len(scores):  # nothing speaks for refusing anything
        return float(min(edges[best], 0.0))
    return float((edges[best] + edges[best + 1]) / 2) if best else float(np.nextafter(edges[1], np.inf))


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
    return answer_figures(references, [one.answer for one in found]) | ranking_figures(ranks, cuts)


def _rank(one: Found, accepted: Sequence[str], document: str | None) -> float:
    for rank, hit in enumerate(one.hits, 1):
        here = hit.text + str(hit.document.fields.get("answer", ""))
        if hit.document.id == document if document is not None else any(text in here for text in accepted):
            return float(rank)
    return np.inf

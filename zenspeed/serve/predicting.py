"""Answers to rows: rows that wait together are packed batches of the run's own task (waiting.py says which).

    submit ─ rows that wait ─┬─ lane: a batch, on its share of the cores ─ done, by row
                             └─ lane

Two batches on a core each are done sooner than one after the other on both: threads of one product wait for each other at
every layer, and for the server, which needs a core as well. A batch that is alone has all cores.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import torch

from zenspeed.errors import InputError
from zenspeed.recipe import TaskConfig
from zenspeed.retrieve.answer import answer
from zenspeed.retrieve.embed import Reader
from zenspeed.retrieve.index import Index
from zenspeed.serve.batching import Busy
from zenspeed.serve.encoder import EncoderBody
from zenspeed.serve.opened import Opened
from zenspeed.serve.scoring import score
from zenspeed.serve.waiting import BATCH_TOKENS, KERNEL_TOKENS, Done, Job, Row, Texts, take_batch
from zenspeed.tasks.classification import ClassificationTask
from zenspeed.tasks.similarity import SimilarityTask

LANES = 4
"""Batches at a time at most: a tenth of a batch's time is Python's, which is one at a time."""
KERNEL_LANES = 16
"""The same where encoder.cpp answers: a batch has one core there, and holds Python's lock as little."""
_WORDS = 48  # tried one by one when it is asked which of them mattered


class Predictor:
    """Threads that answer rows; `max_queue` rows wait at most."""

    def __init__(self, opened: Opened, reader: Reader | None = None, max_queue: int = 4096) -> None:
        self._opened, self._reader, self._max = opened, reader, max_queue
        self._waiting: list[Row] = []
        self._running = 0
        self._closing = False
        self._changed = threading.Condition()
        self.batches = self.rows = 0
        self._cores = torch.get_num_threads()
        self._encodes = isinstance(opened.task, ClassificationTask | SimilarityTask)
        """One pass over tokens that are known. What writes is better off with many rows, whatever their lengths."""
        kernel = isinstance(getattr(opened.model, "body", None), EncoderBody)
        self._most_tokens = KERNEL_TOKENS if kernel else BATCH_TOKENS
        lanes = min(self._cores, KERNEL_LANES if kernel else LANES) if self._encodes else 1
        self._threads = [threading.Thread(target=self._work, name=f"predictor {i}", daemon=True) for i in range(lanes)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: str, rows: Sequence[Any], done: Done, tokens: Sequence[Texts] | None = None) -> None:
        """`work`: `predict` (rows of the task), `embed` (texts), `find` and `ask` (rows for an index), `score`
        (arguments of scoring.py).
        `tokens`: of the texts of each row, where they are known. `done` gets one result a row, by a thread of the predictor.

        Raises:
            Busy: too many wait.
        """
        job = Job(work, len(rows), done)
        texts = tokens if tokens is not None and self._encodes else [None] * len(rows)
        new = [Row(job, i, row, t, self._length(t)) for i, (row, t) in enumerate(zip(rows, texts, strict=True))]
        with self._changed:
            if self._closing or len(self._waiting) + len(rows) > self._max:
                raise Busy(2)
            self._waiting += new
            self._changed.notify_all()

    def _length(self, texts: Texts | None) -> int:
        """Tokens that the model reads of a row; all are alike where that is not known."""
        if texts is None or self._opened.task is None:
            return 0
        task, whole = self._opened.task, sum(map(len, texts))
        return whole if task.recipe.task.stride is not None else min(whole, task.longest)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Answers what waits, and ends."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5)

    def _work(self) -> None:
        threads = self._cores
        while taken := self._take():
            batch, wanted = taken
            if wanted != threads:
                torch.set_num_threads(threads := wanted)  # of this lane alone
            self._answer(batch)
            with self._changed:
                self._running -= 1

    def _take(self) -> tuple[list[Row], int] | None:
        """The next batch, when there is one, and the threads it may use; None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            batch = take_batch(self._waiting, self._most_tokens)
            self._running += 1
            at_a_time = min(len(self._threads), self._running + bool(self._waiting))
            return batch, self._cores // at_a_time

    def _answer(self, rows: list[Row]) -> None:
        rows = [row for row in rows if not row.job.failed]
        if not rows:
            return
        try:
            results = self._run(rows)
        except Exception as error:
            jobs = dict.fromkeys(row.job for row in rows)
            if len(jobs) == 1:
                rows[0].job.fail(error)
                return
            for job in jobs:  # one of them is at fault: each by itself
                self._answer([row for row in rows if row.job is job])
            return
        with self._changed:
            self.batches, self.rows = self.batches + 1, self.rows + len(results)
        for row, result in zip(rows, results, strict=True):
            row.job.put(row.place, result)

    def _run(self, rows: list[Row]) -> list[Any]:
        opened, work, given = self._opened, rows[0].job.work, [row.given for row in rows]
        if work == "score":
            return [score(opened, **arguments) for arguments in given]
        if opened.searched is not None:
            return _out_of_index(opened.searched, self._reader, work, given)
        task, tokens = opened.task, [row.tokens for row in rows if row.tokens is not None] or None
        assert task is not None
        if work == "embed":
            assert isinstance(task, SimilarityTask)
            return list(task.embed(opened.model, given, opened.place, tokens and [texts[0] for texts in tokens]))
        if isinstance(task, ClassificationTask):
            return task.predict(opened.model, given, opened.place, tokens)
        return task.predict(opened.model, given, opened.place)


def _out_of_index(index: Index, reader: Reader | None, work: str, rows: list[dict[str, Any]]) -> list[Any]:
    most = max(row["k"] for row in rows)
    if work == "ask":
        return [found.as_dict() for found in answer(index, [row["question"] for row in rows], reader, k=most)]
    found = index.search([row["query"] for row in rows], most)
    return [[hit.as_dict() for hit in hits[: row["k"]]] for hits, row in zip(found, rows, strict=True)]


def row_of(opened: Opened, given: dict[str, Any]) -> dict[str, Any]:
    """A request's texts as a row with the columns of the run's task.

    Raises:
        InputError: a second text is missing, or not wanted.
    """
    assert opened.task is not None
    task = opened.task.recipe.task
    if task.kind == "span_qa":
        if not given.get("context"):
            raise InputError("context: this model looks for the answer in a passage; give it as context")
        return {task.question: given["question"], task.context: given["context"]}
    if task.kind == "seq2seq":
        return _source_row(task, opened.card.get("controls", {}), given)
    row = {task.text: given["text"]}
    if task.text_pair is not None:
        if "pair" not in given:
            raise InputError("pair: this model reads two texts; give the second as pair")
        row[task.text_pair] = given["pair"]
    elif "pair" in given:
        raise InputError("pair: this model reads one text")
    return row


def _source_row(task: TaskConfig, choices: dict[str, list[str]], given: dict[str, Any]) -> dict[str, Any]:
    """A text to be rewritten, or a question, with its passage if there is one, in one text."""
    text = given.get("text") or "\n".join(part for part in (given.get("question"), given.get("context")) if part)
    known = [*task.control, *([task.length] if task.length else [])]
    controls = given.get("controls") or {}
    if missing := [name for name in known if name not in controls]:
        told = [f"{name} ({', '.join(choices[name]) if name in choices else 'a number of words'})" for name in known]
        raise InputError(f"controls: {missing[0]!r} is missing; this model is to be told {', '.join(told)}")
    if unknown := [name for name in controls if name not in known]:
        raise InputError(f"controls: {unknown[0]!r} is unknown; this model knows {', '.join(known) or 'none'}")
    return {**controls, task.text: text}


def without_each(text: str) -> tuple[list[str], list[str]]:
    """The words of `text`, and the text without each of them; Chinese characters are words of their own."""
    words = _words(text)[:_WORDS]
    return [text[a:b] for a, b in words], [text[:a] + text[b:] for a, b in words]


def _words(text: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:['’-]\w+)*|[^\w\s]", text)]

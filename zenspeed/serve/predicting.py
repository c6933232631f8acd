"""Answers to rows: requests that wait together are one packed batch of the run's own task."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zenspeed.errors import InputError
from zenspeed.recipe import TaskConfig
from zenspeed.retrieve.answer import answer
from zenspeed.retrieve.embed import Reader
from zenspeed.retrieve.index import Index
from zenspeed.serve.batching import Busy
from zenspeed.serve.opened import Opened
from zenspeed.serve.scoring import score
from zenspeed.tasks.similarity import SimilarityTask

ROWS = 256
"""Rows of a batch at most."""
_WORDS = 48  # tried one by one when it is asked which of them mattered


class _Job(NamedTuple):
    work: str
    rows: list[Any]
    done: Callable[[list[Any] | Exception], None]


class Predictor:
    """One thread that answers rows; `max_queue` rows wait at most."""

    def __init__(self, opened: Opened, reader: Reader | None = None, max_queue: int = 4096) -> None:
        self._opened, self._reader, self._max = opened, reader, max_queue
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self.batches = self.rows = 0
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()

    def submit(self, work: str, rows: Sequence[Any], done: Callable[[list[Any] | Exception], None]) -> None:
        """`work`: `predict` (rows of the task), `embed` (texts), `find` and `ask` (rows for an index), `score`
        (arguments of scoring.py).
        `done` gets one result a row, by the predictor's thread.

        Raises:
            Busy: too many wait.
        """
        with self._changed:
            if self._closing or self._waiting + len(rows) > self._max:
                raise Busy(2)
            self._waiting += len(rows)
            self._queue.append(_Job(work, list(rows), done))
            self._changed.notify()

    @property
    def waiting(self) -> int:
        return self._waiting

    def close(self) -> None:
        """Answers what waits, and ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(5)

    def _work(self) -> None:
        while jobs := self._take():
            self._answer(jobs)

    def _take(self) -> list[_Job]:
        """The next job, and those behind it that can be answered with it; waits for one, and is empty at the end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            jobs: list[_Job] = []
            while self._queue and (not jobs or self._queue[0].work == jobs[0].work):
                if jobs and sum(len(job.rows) for job in jobs) >= ROWS:
                    break
                jobs.append(self._queue.popleft())
            self._waiting -= sum(len(job.rows) for job in jobs)
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            results = self._run(jobs[0].work, [row for job in jobs for row in job.rows])
        except Exception as error:
            if len(jobs) > 1:  # one of them is at fault: each by itself
                for job in jobs:
                    self._answer([job])
            else:
                jobs[0].done(error)
            return
        self.batches, self.rows = self.batches + 1, self.rows + len(results)
        for job in jobs:
            job.done(results[: len(job.rows)])
            results = results[len(job.rows) :]

    def _run(self, work: str, rows: list[Any]) -> list[Any]:
        opened = self._opened
        if work == "score":
            return [score(opened, **row) for row in rows]
        if opened.searched is not None:
            return _out_of_index(opened.searched, self._reader, work, rows)
        assert opened.task is not None
        if work == "embed":
            assert isinstance(opened.task, SimilarityTask)
            return list(opened.task.embed(opened.model, rows, opened.place))
        return opened.task.predict(opened.model, rows, opened.place)


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

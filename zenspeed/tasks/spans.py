"""Extractive question answering: where in a text the answer to a question stands (SQuAD, Rajpurkar et al. 1606.05250).

    [cls] question [sep] window of the context [sep]

A context that is too long is read in windows that overlap, each an example of its own. A window without the answer points at
its first token, which stands for "not here" (Devlin et al. 1810.04805, section 4.3); so does every window of a question that
has no answer. Answers are given as places in characters of the context as it was handed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.data.batch import IGNORE, Batch
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout
from zenspeed.evaluate.answers import answer_figures
from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval
from zenspeed.ops.pool import log_softmax_in_documents
from zenspeed.ops.span import best_spans
from zenspeed.tasks.answers import Answer, answers_of
from zenspeed.tasks.base import Place, on_device
from zenspeed.tasks.encoding import special_tokens, window_starts
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, column_of

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTEXTS = 1024  # encoded contexts that are kept; the questions about one mostly stand together


class Span(NamedTuple):
    """The likeliest answer in a context: `context[start:end] == text`."""

    text: str
    start: int
    end: int
    score: float
    """Probability of start and end in the window where it stands."""
    no_answer: float
    """Probability that the context holds no answer, by the window that is least sure of it."""

    @property
    def found(self) -> bool:
        """Whether this answer is likelier than none."""
        return self.score > self.no_answer


class SpanTask(RowTask):
    """Targets of an example are (start, end, first token of the context, number of that token in the whole context)."""

    def prepare(self) -> None:
        room = self.longest - 3
        if room < 4:
            raise InputError("model.context: too small for a question, a text and their special tokens; give at least 16")
        stride = self.recipe.task.stride
        if stride is not None and stride >= room // 2:
            raise InputError(
                f"task.stride: {stride} tokens of overlap leave nothing new in windows of {room // 2}, beside a question as "
                f"long; give less than {room // 2}, or a larger task.max_tokens"
            )
        self._context = lru_cache(maxsize=_CONTEXTS)(self._encode_context)

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "span", 0, seed, pretrained)

    # Rows to examples -------------------------------------------------------------------------------------------------

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        task = self.recipe.task
        for column, key in ((task.question, "task.question"), (task.context, "task.context")):
            column_of(rows, column, key, split)
        answers = [answers_of(row, task, f"row {number} of {split}") for number, row in enumerate(rows, 1)]
        self.report.setdefault("without an answer", {})[split] = sum(not found for found in answers)
        return self._examples(rows, split, [found[0] if found else None for found in answers])

    def _examples(self, rows: list[dict[str, Any]], split: str, answers: list[Answer | None]) -> Examples:
        """Every window of every row; without answers the targets say "not here"."""
        task, (begin, end) = self.recipe.task, special_tokens(self.tokenizer)
        questions = self.tokenizer.encode_batch(column_of(rows, task.question, "task.question", split))
        contexts = column_of(rows, task.context, "task.context", split)
        most = (self.longest - 3) // 2
        tokens, types, targets, owner, in_no_window = [], [], [], [], 0
        for index, (question, text, answer) in enumerate(zip(questions, contexts, answers, strict=True)):
            question, held = question[:most], answer is None
            context, offsets = self._context(text)
            wanted = None if answer is None else _tokens_of(answer, offsets, f"row {index + 1} of {split}")
            room, first = self.longest - 3 - len(question), len(question) + 2
            # By default so many that every answer stands whole in some window.
            stride = min(task.max_answer_tokens if task.stride is None else task.stride, room // 2)
            for start in window_starts(len(context), room, stride):
                window = context[start : start + room]
                tokens.append(np.concatenate([[begin], question, [end], window, [end]]))
                types.append(np.repeat([0, 1], [first, len(window) + 1]))
                here = wanted is not None and start <= wanted[0] and wanted[1] < start + len(window)
                held = held or here
                place = [first + wanted[0] - start, first + wanted[1] - start] if here and wanted else [0, 0]
                targets.append([*place, first, start])
                owner.append(index)
            in_no_window += not held
        self.report.setdefault("answers longer than the overlap, in no window", {})[split] = in_no_window
        cut = sum(len(question) > most for question in questions)
        self.report.setdefault("questions cut", {})[split] = cut
        shaped = np.array(targets, np.int64).reshape(-1, 4)
        return Examples(Ragged(tokens), shaped, np.array(owner, np.int64), rows, Ragged(types))

    def _encode_context(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a context and their places in it, (tokens, 2)."""
        ids, offsets = self.tokenizer.encode_with_offsets(_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))
        return np.array(ids, np.int64), offsets

    # Batches and losses -----------------------------------------------------------------------------------------------

    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch:
        """Targets (N, 4): start, end, first token of the context and first token of all, as places in the flattened B·T."""
        inputs["num_documents"] = len(indices)
        begin = layout.rows * layout.width + layout.columns
        places = np.column_stack([examples.targets[indices, :3], np.zeros(len(indices), np.int64)]) + begin[:, None]
        return Batch(inputs, torch.from_numpy(places))

    def num_targets(self, batch: Batch) -> int:
        return int((batch.targets[:, :2] != IGNORE).sum())

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = on_device(batch, next(module.parameters()).device)
        return module(**inputs, targets=targets[:, :2])

    def _read(self, module: nn.Module, batch: Batch) -> Tensor:
        """(N, 5) of every window: loss, log probability of the best span and of none, start and end of that span."""
        inputs, targets = on_device(batch, next(module.parameters()).device)
        documents, num = inputs["documents"].flatten(), inputs["num_documents"]
        logits = module(**inputs)
        log_p = log_softmax_in_documents(logits, inputs["documents"], num)
        context, begin = targets[:, 2], targets[:, 3]
        last = begin + torch.bincount(documents[documents >= 0], minlength=num) - 1  # the [sep] at the end
        places, own = torch.arange(len(documents), device=documents.device), documents.clamp(min=0)
        allowed = (documents >= 0) & (places >= context[own]) & (places < last[own])
        best, span = best_spans(log_p, documents, allowed, num, self.recipe.task.max_answer_tokens)
        loss = -(log_p[targets[:, 0], 0] + log_p[targets[:, 1], 1]) / 2
        none = log_p[begin].sum(1)
        return torch.stack([loss, best, none, *(span - context.unsqueeze(1)).float().unbind(1)], 1)

    # Answers ----------------------------------------------------------------------------------------------------------

    def find(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[Span]:
        """The likeliest span of each row's context, whether or not none is likelier; rows need no answers.

        Raises:
            InputError: a row has no question or no context.
        """
        examples = self._examples(rows, "the rows", [None] * len(rows))
        return list(self._spans(examples, self.outputs(model, examples, place, (5,), self._read)))

    def _spans(self, examples: Examples, read: np.ndarray) -> Iterator[Span]:
        """Of each row, the best span of all its windows, which follow one another."""
        ends = np.searchsorted(examples.owner, np.arange(len(examples.rows)), "right")
        for row, first, end in zip(examples.rows, [0, *ends[:-1]], ends, strict=True):
            own = read[first:end]
            best = int(own[:, 1].argmax())
            none = float(np.exp(own[:, 2].min()))
            if not np.isfinite(own[best, 1]):  # a context without a token
                yield Span("", 0, 0, 0.0, none)
                continue
            text, start = str(row[self.recipe.task.context]), int(examples.targets[first + best, 3])
            offsets = self._context(text)[1]
            begin, stop = int(offsets[start + int(own[best, 3]), 0]), int(offsets[start + int(own[best, 4]), 1])
            yield Span(text[begin:stop], begin, stop, float(np.exp(own[best, 1])), none)

    def _answers(self, rows: Iterable[dict[str, Any]], spans: Iterable[Span]) -> Iterator[dict[str, Any]]:
        task = self.recipe.task
        for number, (row, span) in enumerate(zip(rows, spans, strict=True), 1):
            given = {
                "prediction": span.text if span.found else "",
                "start": span.start if span.found else None,
                "end": span.end if span.found else None,
                "score": round(span.score if span.found else span.no_answer, 6),
                "no_answer": round(span.no_answer, 6),
            }
            truth: dict[str, Any] = {}
            if task.answer in row:
                accepted = [answer.text for answer in answers_of(row, task, f"row {number}")]
                truth = {"reference": accepted if len(accepted) > 1 else accepted[0] if accepted else ""}
            same = {"id": row["id"]} if "id" in row else {}
            asked = {"question": str(row[task.question]), "context": str(row[task.context])}
            yield same | asked | given | truth

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss, exact match, token F1, and refusals where some questions have no answer."""
        read = self.outputs(model, examples, place, (5,), self._read)
        sums = np.zeros((len(examples.rows), 2))
        np.add.at(sums, examples.owner, np.column_stack([read[:, 0], np.ones(len(read))]))
        loss = ratio_interval(sums[:, 0], sums[:, 1], "mean negative log likelihood of start and of end in a window, in nats")
        pairs = ((accepted_of(a), a["prediction"]) for a in self._answers(examples.rows, self._spans(examples, read)))
        found = answer_figures(pairs)
        return {"loss": loss} | {name: figure for name, figure in found.items() if isinstance(figure, Figure)}

    def predict(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
        """`question`, `context`, `prediction` (empty: no answer in it), `start`, `end`, `score`, `no_answer`; and `reference`,
        a text or several, where the row has an answer (an empty one: there is none)."""
        return list(self._answers(rows, self.find(model, rows, place)))

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        return answer_figures((accepted_of(p), p["prediction"]) for p in predictions)


def accepted_of(answer: dict[str, Any]) -> list[str]:
    """What is right, of an answer that holds it; nothing: there is no answer."""
    reference = answer["reference"]
    return [text for text in (reference if isinstance(reference, list) else [reference]) if text]


def _tokens_of(answer: Answer, offsets: np.ndarray, place: str) -> tuple[int, int]:
    """First and last token of an answer, both included; they may hold more than it, where it begins inside a word."""
    inside = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.end))
    if not len(inside):
        raise InputError(f"task.answer: {place}: {answer.text!r} becomes no token of this tokenizer; take another answer")
    return int(inside[0]), int(inside[-1])

"""What all tasks over rows have in common: rows of the recipe's data, encoded, in packed batches; losses and outputs by row."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.data.batch import IGNORE, Batch
from zenspeed.data.examples import EpochOrder, Ragged
from zenspeed.data.on_disk import NumbersOnDisk, RowsOnDisk
from zenspeed.data.packing import Layout, document_numbers, fill, pack_in_one, pad
from zenspeed.data.report import report_of
from zenspeed.data.report_page import as_json
from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval
from zenspeed.evaluate.rowfile import RowFile
from zenspeed.models.presets import ModelConfig
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, Task, on_device, sum_over_ranks
from zenspeed.tasks.data import RowData, open_rows, text_columns
from zenspeed.text.tokenizer import Tokenizer

EVALUATION_TOKENS = 8192
"""Tokens of an evaluation batch."""
BLOCK_CHARACTERS = 4_000_000
"""Of rows that are encoded, or answered, together: then they are forgotten."""
BLOCK_ROWS = 16_384
"""At most, of such rows."""


MOST_REPORTED = 10_000
"""Rows of a split that the data report looks at."""


class Examples(NamedTuple):
    """One split, encoded. A long text may be several examples, each a window of it."""

    tokens: Ragged
    targets: np.ndarray
    """(examples,) or (examples, …), one target each."""
    owner: np.ndarray
    """(examples,) the row that each example is of."""
    rows: Sequence[dict[str, Any]]
    token_types: Ragged | None = None
    written: Ragged | None = None
    """What is to be written, of a task that has a source and a target."""

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) tokens of each, the target's included."""
        return self.tokens.lengths if self.written is None else self.tokens.lengths + self.written.lengths

    def digest(self) -> str:
        written = b"" if self.written is None else self.written.digest()
        return hashlib.sha256(self.tokens.digest() + self.targets.tobytes() + written).hexdigest()


class JoinedExamples:
    """Examples of blocks of rows as one, their tokens and targets on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ragged: dict[str, tuple[NumbersOnDisk, list[np.ndarray]]] = {}
        self._targets: NumbersOnDisk | None = None
        self._owner: list[np.ndarray] = []

    def add(self, part: Examples, first_row: int) -> None:
        for name in ("tokens", "token_types", "written"):
            if (sequences := getattr(part, name)) is not None:
                values, lengths = self._ragged.setdefault(name, (NumbersOnDisk(np.int32, self._folder), []))
                values.extend(sequences.values)
                lengths.append(sequences.lengths)
        self._shape = part.targets.shape[1:]
        self._targets = self._targets or NumbersOnDisk(part.targets.dtype, self._folder)
        self._targets.extend(part.targets)
        self._owner.append(part.owner + first_row)

    def finish(self, rows: Sequence[dict[str, Any]]) -> Examples:
        ragged = {name: Ragged.of(values.finish(), np.concatenate(lengths)) for name, (values, lengths) in self._ragged.items()}
        assert self._targets is not None
        targets = self._targets.finish().reshape(-1, *self._shape)
        return Examples(targets=targets, owner=np.concatenate(self._owner), rows=rows, **ragged)


def in_blocks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most BLOCK_ROWS rows, of about BLOCK_CHARACTERS."""
    block: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        block.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if characters > BLOCK_CHARACTERS or len(block) == BLOCK_ROWS:
            yield block
            block, characters = [], 0
    if block:
        yield block


class RowTask(Task):
    """A task whose sample is an example: a subclass says how rows are encoded and what a batch's targets are.

    `judge` gives figures of encoded examples; `predict` answers rows that need not hold the truth, and `score` judges such
    answers where they do. Training, evaluation, cross-validation, export and serving all go through these.
    """

    train: Examples
    validation: Examples
    test: Examples | None = None
    apart: ClassVar[bool] = True
    """A row is answered without the others: rows are answered a block at a time, so that no more are held."""
    writes: ClassVar[bool] = False
    """Its answers are texts, written a token at a time: judged at the end only, for it takes long."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        data = open_rows(recipe, progress)
        self.recipe, self.tokenizer, self.report = recipe, data.tokenizer, data.report
        self.prepare()
        self._set_up(data)

    @classmethod
    def of_run(cls, recipe: Recipe, tokenizer: Tokenizer) -> Self:
        """The task of a finished run, to be used on other rows: it has no data of its own."""
        task = cls.__new__(cls)
        task.recipe, task.tokenizer, task.report = recipe, tokenizer, {}
        task.prepare()
        return task

    def prepare(self) -> None:
        """Derives what the task needs from its recipe and tokenizer, both of which are set."""

    @abstractmethod
    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        """Rows with their answers -> examples. `split`: for people.

        Raises:
            InputError: a column is missing, or an answer cannot be learned.
        """

    def _set_up(self, data: RowData) -> None:
        """Encodes the splits and fixes the order of training."""
        splits = [self.encode_all(rows, name) for rows, name in data.splits()]
        recipe = self.recipe
        self.train, self.validation, self.test = splits[0], splits[1], splits[2] if len(splits) > 2 else None
        train, validation = self.train, self.validation
        self.fingerprint = train.digest()
        lengths = train.lengths
        self.num_samples, self.tokens_per_sample = len(lengths), float(lengths.mean())
        self.evaluation_tokens = int(validation.lengths.sum())
        micro = recipe.train.micro_batch_size or 1
        self.order = EpochOrder(
            recipe.run.seed,
            lengths,
            micro,
            bucketed=recipe.train.batching == "bucketed",
            difficulty=self._difficulty(recipe, train),
        )

    def encode_all(self, rows: Sequence[dict[str, Any]], split: str) -> Examples:
        """The same as `encode`, of rows that lie on disk a block after the other, onto the disk."""
        if not isinstance(rows, RowsOnDisk):
            return self.encode(list(rows), split)
        said, cut = self.report.pop("cut", {}), Counter[str]()
        joined, first = JoinedExamples(rows.folder), 0
        for block in in_blocks(rows):
            try:
                joined.add(self.encode(block, split), first)
            except InputError as error:
                raise InputError(f"{error} (rows counted from row {first + 1:,} on)" if first else str(error)) from None
            first += len(block)
            cut.update(self.report.pop("cut", {}))
        if said or cut:
            self.report["cut"] = said | dict(cut)
        return joined.finish(rows)

    def _difficulty(self, recipe: Recipe, train: Examples) -> np.ndarray | None:
        column = recipe.train.curriculum
        if column is None or column == "length":
            return None if column is None else train.lengths
        if column not in train.rows[0]:
            raise InputError(f"train.curriculum: no column {column!r}; it is `length` or one of {', '.join(train.rows[0])}")
        try:
            return np.array([float(str(train.rows[i][column])) for i in train.owner])
        except ValueError as error:
            raise InputError(f"train.curriculum: column {column!r} is to hold numbers: {error}") from None

    def remarks(self) -> list[str]:
        cut = self.report.get("cut", {})
        return [
            f"data: {count:,} texts of {split} are longer than {self.longest} tokens and lose their end; task.max_tokens takes "
            "more, task.stride reads a text in windows"
            for split, count in cut.items()
            if count
        ]

    # Batches ----------------------------------------------------------------------------------------------------------

    def micro_batches(self, first: int, sizes: Sequence[int]) -> list[Batch]:
        packed = self.recipe.train.batching == "packed"
        return [
            self.collate(self.train, self.order.take(start, size), packed=packed, seed=start)
            for start, size in zip(itertools.accumulate(sizes, initial=first), sizes, strict=False)
        ]

    def collate(self, examples: Examples, indices: np.ndarray, *, packed: bool, seed: int | None = None) -> Batch:
        """The batch of `indices`. `seed`: of what is random in training; None in evaluation."""
        lengths = examples.tokens.lengths[indices]
        layout = pack_in_one(lengths) if packed else pad(lengths)
        inputs: dict[str, Any] = {
            "tokens": fill(layout, [examples.tokens[i] for i in indices], self.padding),
            "documents": document_numbers(layout, lengths),
        }
        if examples.token_types is not None and reads_token_types(self.recipe.model):
            inputs["token_types"] = fill(layout, [examples.token_types[i] for i in indices], 0)
        return self.with_targets(inputs, examples, indices, layout, seed)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        task, model = self.recipe.task, self.recipe.model
        most = min(model.context, 256) if model.huggingface is not None else model.context
        return min(task.max_tokens or most, model.context)

    @property
    def padding(self) -> int:
        """Token where there is no text."""
        return self.tokenizer.pad if self.tokenizer.pad is not None else 0

    @abstractmethod
    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch: ...

    # Evaluation -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Figures of examples, "loss" first, the same on all ranks."""

    def predict(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
        """One answer a row, in order, ready for JSON and the same on all ranks; with the truth where the row holds it.

        Raises:
            InputError: a column is missing, or the task answers nothing.
        """
        raise InputError(f"{self.recipe.task.kind}: has no answers to give for a row; only its loss can be looked at")

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        """Figures of answers that hold the truth as well; a file of them is read, and not held."""
        raise InputError(f"{self.recipe.task.kind}: has no answers that could be scored")

    def blocks(self, rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Rows that are answered together."""
        return in_blocks(rows) if self.apart else iter([list(rows)])

    def answers(self, model: nn.Module, rows: Sequence[dict[str, Any]], place: Place) -> Iterator[dict[str, Any]]:
        """Those of `predict`, a block of rows at a time."""
        for block in self.blocks(rows):
            yield from self.predict(model, block, place)

    def figures(
        self, model: nn.Module, examples: Examples, place: Place, answers: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, Figure]:
        """Those of `judge`, and of a task that writes also those of what it writes for the same rows: `answers`, if they are
        there already."""
        figures = self.judge(model, examples, place)
        if self.writes:
            answers = list(self.answers(model, examples.rows, place)) if answers is None else answers
            figures |= {name: figure for name, figure in self.score(answers).items() if isinstance(figure, Figure)}
        return figures

    def evaluate(self, model: nn.Module, place: Place) -> dict[str, Figure]:
        return self.judge(model, self.validation, place)

    def finish(self, model: nn.Module, place: Place, folder: Path, say: Callable[[str], None]) -> dict[str, Figure]:
        """Answers for the test split, or for the validation split where there is no test; figures of the test split."""
        answers = None
        with tempfile.TemporaryDirectory(prefix="zenspeed-answers-") as name:
            if type(self).predict is not RowTask.predict:  # every rank has them all, the first keeps them
                partial = (folder if place.rank == 0 else Path(name)) / "predictions.jsonl.partial"
                write_rows(partial, self.answers(model, (self.test or self.validation).rows, place))
                answers = RowFile(partial.replace(partial.with_suffix("")))
            return self._of_test(model, place, answers, say)

    def _of_test(
        self, model: nn.Module, place: Place, answers: RowFile | None, say: Callable[[str], None]
    ) -> dict[str, Figure]:
        if self.test is None:
            return {}
        figures = self.figures(model, self.test, place, answers)
        say("test: " + self.summary(figures))
        return {f"test_{name}": figure for name, figure in figures.items()}

    def data_report(self) -> dict[str, Any]:
        columns, task = text_columns(self.recipe), self.recipe.task
        held_out = ("validation", self.validation) if self.test is None else ("test", self.test)
        splits = {name: looked_at(examples.rows) for name, examples in (("train", self.train), held_out)}
        of_text = {
            name: ([{"text": "\n".join(str(row[c]) for c in columns), "label": row.get(task.label)} for row in rows], every)
            for name, (rows, every) in splits.items()
        }
        return as_json(report_of(of_text, "text", "label" if task.kind == "classification" else None, self.tokenizer))

    @torch.no_grad()
    def outputs(
        self,
        model: nn.Module,
        examples: Examples,
        place: Place,
        shape: tuple[int, ...],
        output: Callable[[nn.Module, Batch], Tensor],
    ) -> np.ndarray:
        """(examples, *shape) float64: `output` of every example, (n, *shape) for a batch of n; the same on all ranks.

        Examples are taken by length, so that hardly any place is padding. Every rank does the same number of batches, since a
        sharded model's forward is collective; what a rank does over again to keep step is not counted.
        """
        out = torch.zeros((len(examples.tokens), *shape), dtype=torch.float64)
        batches = list(by_tokens(examples.lengths, EVALUATION_TOKENS))
        was_training = model.training
        if was_training:  # a walk over all modules, and one that several threads must not take at a time
            model.eval()
        with place.autocast:
            for step in range(0, len(batches), place.ranks):
                mine = step + place.rank
                indices = batches[min(mine, len(batches) - 1)]
                values = output(model, self.collate(examples, indices, packed=True))
                if mine < len(batches):
                    out[torch.from_numpy(indices)] = values.double().cpu()
        if was_training:
            model.train()
        sum_over_ranks([out], place.ranks)
        return out.numpy()


def looked_at(rows: Sequence[Any]) -> tuple[list[Any], int]:
    """Rows for the data report, every n-th of very many, and the number of all."""
    every = -(-len(rows) // MOST_REPORTED)
    return [rows[i] for i in range(0, len(rows), max(1, every))], len(rows)


def reads_token_types(model: ModelConfig) -> bool:
    """Whether the model tells a second text from the first by its type; RoBERTa has one type for all."""
    return model.architecture == "transformers" or model.token_types > 1


def losses_by_document(module: nn.Module, batch: Batch) -> Tensor:
    """(documents, 2) summed loss of the targets of each document in nats, and their number."""
    inputs, targets = on_device(batch, next(module.parameters()).device)
    losses = module(**inputs, targets=targets, reduction="none").float()
    counted, documents = targets != IGNORE, inputs["documents"]
    sums = torch.zeros(int(documents.max()) + 1, 2, device=losses.device)
    pairs = torch.stack([losses[counted], torch.ones_like(losses[counted])], -1)
    return sums.index_add_(0, documents[counted], pairs)


def loss_figures(sums: np.ndarray, of: str) -> dict[str, Figure]:
    """Loss and perplexity of (units, 2) summed losses and their number; `of`: what a target is."""
    sums = sums[sums[:, 1] > 0]
    loss = ratio_interval(sums[:, 0], sums[:, 1], f"mean negative log likelihood of {of}, in nats")
    return {"loss": loss, "perplexity": ratio_interval(sums[:, 0], sums[:, 1], "exp(loss)", np.exp)}


def by_tokens(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Indices by falling length, in batches of up to `most` tokens."""
    order = np.argsort(-lengths, kind="stable")
    start, total = 0, 0
    for position, index in enumerate(order):
        if total + lengths[index] > most and position > start:
            yield order[start:position]
            start, total = position, 0
        total += int(lengths[index])
    if start < len(order):
        yield order[start:]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """As JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def column_of(rows: Sequence[dict[str, Any]], column: str, key: str, split: str) -> list[str]:
    """The texts of a column, or an `InputError` that says what is there."""
    texts = []
    for number, row in enumerate(rows):
        value = row.get(column)
        if value is None:
            raise InputError(f"{key}: row {number + 1} of {split} has no {column!r}; its columns: {', '.join(map(str, row))}")
        texts.append(str(value))
    return texts

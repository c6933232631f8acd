"""What all tasks over rows have in common: rows of the recipe's data, encoded, in packed batches; losses and outputs by row."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.data.batch import Batch
from zenspeed.data.examples import EpochOrder, Ragged
from zenspeed.data.packing import Layout, document_numbers, fill, pack, pad
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, Task, sum_over_ranks

EVALUATION_TOKENS = 8192
"""Tokens of an evaluation batch."""


class Examples(NamedTuple):
    """One split, encoded. A long text may be several examples, each a window of it."""

    tokens: Ragged
    targets: np.ndarray
    """(examples,) or (examples, …), one target each."""
    owner: np.ndarray
    """(examples,) the row that each example is of."""
    rows: list[dict[str, Any]]
    token_types: Ragged | None = None

    def digest(self) -> str:
        return hashlib.sha256(self.tokens.digest() + self.targets.tobytes()).hexdigest()


class RowTask(Task):
    """A task whose sample is an example: a subclass says how rows are encoded and what a batch's targets are."""

    train: Examples
    validation: Examples
    test: Examples | None = None

    def _set_up(self, recipe: Recipe, train: Examples, validation: Examples, test: Examples | None) -> None:
        self.train, self.validation, self.test = train, validation, test
        self.fingerprint = train.digest()
        lengths = train.tokens.lengths
        self.num_samples, self.tokens_per_sample = len(lengths), float(lengths.mean())
        self.evaluation_tokens = int(validation.tokens.lengths.sum())
        micro = recipe.train.micro_batch_size or 1
        self.order = EpochOrder(
            recipe.run.seed,
            lengths,
            micro,
            bucketed=recipe.train.batching == "bucketed",
            difficulty=self._difficulty(recipe, train),
        )

    def _difficulty(self, recipe: Recipe, train: Examples) -> np.ndarray | None:
        column = recipe.train.curriculum
        if column is None or column == "length":
            return None if column is None else train.tokens.lengths
        if column not in train.rows[0]:
            raise InputError(f"train.curriculum: no column {column!r}; it is `length` or one of {', '.join(train.rows[0])}")
        try:
            return np.array([float(str(train.rows[i][column])) for i in train.owner])
        except ValueError as error:
            raise InputError(f"train.curriculum: column {column!r} is to hold numbers: {error}") from None

    # Batches ----------------------------------------------------------------------------------------------------------

    def micro_batches(self, first: int, count: int, size: int) -> list[Batch]:
        packed = self.recipe.train.batching == "packed"
        return [
            self.collate(self.train, self.order.take(start, size), packed=packed, seed=start)
            for start in range(first, first + count, size)
        ]

    def collate(self, examples: Examples, indices: np.ndarray, *, packed: bool, seed: int | None = None) -> Batch:
        """The batch of `indices`. `seed`: of what is random in training; None in evaluation."""
        lengths = examples.tokens.lengths[indices]
        layout = pack(lengths, self.longest) if packed else pad(lengths)
        inputs: dict[str, Any] = {
            "tokens": fill(layout, [examples.tokens[i] for i in indices], self.padding),
            "documents": document_numbers(layout, lengths),
        }
        if examples.token_types is not None:
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
        batches = list(by_tokens(examples.tokens.lengths, EVALUATION_TOKENS))
        was_training = model.training
        model.eval()
        with place.autocast:
            for step in range(0, len(batches), place.ranks):
                mine = step + place.rank
                indices = batches[min(mine, len(batches) - 1)]
                values = output(model, self.collate(examples, indices, packed=True))
                if mine < len(batches):
                    out[torch.from_numpy(indices)] = values.double().cpu()
        model.train(was_training)
        sum_over_ranks([out], place.ranks)
        return out.numpy()


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


def column_of(rows: Sequence[dict[str, Any]], column: str, key: str, split: str) -> list[str]:
    """The texts of a column, or an `InputError` that says what is there."""
    texts = []
    for number, row in enumerate(rows):
        value = row.get(column)
        if value is None:
            raise InputError(f"{key}: row {number + 1} of {split} has no {column!r}; its columns: {', '.join(map(str, row))}")
        texts.append(str(value))
    return texts

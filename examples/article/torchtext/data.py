"""The four classes of torchtext.data that the listing uses, over zenspeed's own reading, labels and order of samples.

torchtext                       here
TabularDataset                  zenspeed.data.rows.read_rows: CSV, TSV or JSON lines whose first line names the columns
LabelField                      zenspeed.tasks.labels: sorted, checked; a label that training did not hold is an error
BucketIterator                  zenspeed.data.examples.EpochOrder: batches of like length, an order that only the seed decides
Field                           the texts as they are: the listing hands them to the model's own tokenizer
"""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch

from zenspeed.data.examples import EpochOrder
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.errors import InputError
from zenspeed.tasks.labels import check_known, labels_of


class Field:
    """A column of text; `sequential` as in torchtext. A batch holds the texts themselves, for the model's own tokenizer."""

    def __init__(self, sequential: bool = True) -> None:
        self.sequential = sequential

    def build(self, values: list[str], column: str) -> None:
        """Nothing to build: the model's tokenizer has its vocabulary."""

    def batch(self, values: list[str], device: torch.device | str) -> object:
        return values


class LabelField(Field):
    """A column of labels, numbered in the order of their names; those of the first data set hold for all that share it."""

    def __init__(self) -> None:
        super().__init__(sequential=False)
        self.names: list[str] = []

    def build(self, values: list[str], column: str) -> None:
        if self.names:
            check_known(values, self.names, column, "this data set", "the first one")
        else:
            self.names = labels_of(values, None, column)

    def batch(self, values: list[str], device: torch.device | str) -> torch.Tensor:
        return torch.tensor([self.names.index(value) for value in values], device=device)


class TabularDataset:
    """The rows of a file of `format` csv, tsv or json (lines), by the names of `fields`."""

    def __init__(self, path: str, format: str, fields: list[tuple[str, Field]]) -> None:
        suffixes = {"csv": (".csv",), "tsv": (".tsv",), "json": (".jsonl", ".ndjson")}
        if not path.endswith(suffixes.get(format, ())):
            raise InputError(f"{path}: format {format!r} is for files that end in {', '.join(sum(suffixes.values(), ()))}")
        names = tuple(name for name, _ in fields)
        self.fields = dict(fields)
        self.examples = [
            {name: str(row[name]) for name in names} for row in read_rows(path, RowOptions(columns=names, only=True))
        ]
        for name, field in fields:
            field.build([example[name] for example in self.examples], name)


class BucketIterator:
    """Batches of texts of like length, in a new order every epoch (`train=False`: as they stand)."""

    def __init__(
        self, dataset: TabularDataset, batch_size: int, device: torch.device | str = "cpu", train: bool = True, seed: int = 0
    ) -> None:
        self.dataset, self.batch_size, self.device, self.train, self.epoch = dataset, batch_size, device, train, 0
        texts = [name for name, field in dataset.fields.items() if field.sequential]
        lengths = np.array([sum(len(example[name]) for name in texts) for example in dataset.examples])
        self.order = EpochOrder(seed, lengths, batch_size, bucketed=True)

    def __len__(self) -> int:
        return -(-len(self.dataset.examples) // self.batch_size)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        n = len(self.dataset.examples)
        for start in range(0, n, self.batch_size):
            count = min(self.batch_size, n - start)
            chosen = self.order.take(self.epoch * n + start, count) if self.train else range(start, start + count)
            rows = [self.dataset.examples[i] for i in chosen]
            yield SimpleNamespace(
                **{name: field.batch([row[name] for row in rows], self.device) for name, field in self.dataset.fields.items()}
            )
        self.epoch += self.train

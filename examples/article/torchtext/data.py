"""The four classes of torchtext.data that the listing uses."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch


class Field:
    """A column of text; `sequential` as in torchtext. A batch holds the texts themselves, for the model's own tokenizer."""

    def __init__(self, sequential: bool = True) -> None:
        self.sequential = sequential

    def build(self, values: list[str]) -> None:
        """Nothing to build: the model's tokenizer has its vocabulary."""

    def batch(self, values: list[str], device: torch.device | str) -> object:
        return values


class LabelField(Field):
    """A column of labels, numbered in the order of their names."""

    def __init__(self) -> None:
        super().__init__(sequential=False)
        self.names: list[str] = []

    def build(self, values: list[str]) -> None:
        self.names = sorted(set(values))

    def batch(self, values: list[str], device: torch.device | str) -> torch.Tensor:
        return torch.tensor([self.names.index(value) for value in values], device=device)


class TabularDataset:
    """The rows of a CSV file, by the names of `fields`; a first line that holds just those names is their header."""

    def __init__(self, path: str, format: str, fields: list[tuple[str, Field]]) -> None:
        assert format == "csv", f"format {format!r}: only csv is supported"
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        names = [name for name, _ in fields]
        rows = rows[1:] if rows[0] == names else rows
        self.fields = dict(fields)
        self.examples = [dict(zip(names, row, strict=True)) for row in rows]
        for name, field in fields:
            field.build([example[name] for example in self.examples])


class BucketIterator:
    """Batches of texts of similar length, in a new order every epoch."""

    def __init__(
        self, dataset: TabularDataset, batch_size: int, device: torch.device | str = "cpu", train: bool = True, seed: int = 0
    ) -> None:
        self.dataset, self.batch_size, self.device, self.train = dataset, batch_size, device, train
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return -(-len(self.dataset.examples) // self.batch_size)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        examples = list(self.dataset.examples)
        if self.train:
            self.random.shuffle(examples)
        pool = 20 * self.batch_size  # lengths are sorted inside a pool, so that the order stays mostly random
        for start in range(0, len(examples), pool):
            part = sorted(examples[start : start + pool], key=lambda e: len(e["text"]))
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            if self.train:
                self.random.shuffle(batches)
            for rows in batches:
                columns = {n: f.batch([row[n] for row in rows], self.device) for n, f in self.dataset.fields.items()}
                yield SimpleNamespace(**columns)

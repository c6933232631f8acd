"""The stand-in for torchtext in examples/article: rows, labels and buckets as the article's listing takes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from zenspeed.errors import InputError

PATH = Path(__file__).parents[2] / "examples" / "article" / "torchtext" / "data.py"


@pytest.fixture(scope="module")
def data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_in_for_torchtext", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, labels: str, count: int = 50) -> str:
    rows = [f'"text {i}, {"long " * (i % 13)}",{labels[i % len(labels)]}' for i in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_the_listing(data: ModuleType, tmp_path: Path) -> None:
    text, label = data.Field(sequential=True), data.LabelField()
    fields = [("text", text), ("label", label)]
    train = data.TabularDataset(path=write(tmp_path / "train.csv", "ba"), format="csv", fields=fields)
    loader = data.BucketIterator(train, batch_size=8)
    epochs = [list(loader) for _ in range(2)]
    assert [len(b.text) for b in epochs[0]] == [8] * 6 + [2] and len(loader) == 7
    seen = [[t for batch in epoch for t in batch.text] for epoch in epochs]
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(e["text"] for e in train.examples) and seen[0] != seen[1]
    whole = epochs[0][:-1]
    assert sum(max(map(len, b.text)) - min(map(len, b.text)) for b in whole) / len(whole) < 20  # of up to 65 letters
    for batch in epochs[0]:
        assert batch.label.tolist() == [int(train_label(train, t) == "b") for t in batch.text]
    again = data.BucketIterator(train, batch_size=8)
    assert [b.text for b in again] == [b.text for b in epochs[0]]
    held_out = data.TabularDataset(path=write(tmp_path / "test.csv", "b", 5), format="csv", fields=fields)
    (batch,) = data.BucketIterator(held_out, batch_size=8, train=False)
    assert torch.equal(batch.label, torch.ones(5, dtype=torch.int64))  # numbered as in training, though b is alone here
    assert batch.text == [e["text"] for e in held_out.examples]


def train_label(dataset: object, text: str) -> str:
    return next(e["label"] for e in dataset.examples if e["text"] == text)  # type: ignore[attr-defined]


def test_what_does_not_fit_is_named(data: ModuleType, tmp_path: Path) -> None:
    path, label = write(tmp_path / "a.csv", "ab"), data.LabelField()
    with pytest.raises(InputError, match="no column 'review'"):
        data.TabularDataset(path, "csv", [("review", data.Field())])
    with pytest.raises(InputError, match="format 'tsv' is for files that end in"):
        data.TabularDataset(path, "tsv", [("text", data.Field())])
    data.TabularDataset(path, "csv", [("label", label)])
    with pytest.raises(InputError, match="'c' in column 'label' of this data set"):
        data.TabularDataset(write(tmp_path / "b.csv", "c"), "csv", [("label", label)])

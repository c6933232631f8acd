"""A table of more text than is kept in memory lies on disk, and training sees what it sees of a small one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zenspeed.config import InputError, load
from zenspeed.data import on_disk
from zenspeed.data.on_disk import RowsOnDisk, kept_rows
from zenspeed.recipe import Recipe
from zenspeed.tasks import rows as rows_module
from zenspeed.tasks.base import Place
from zenspeed.tasks.open import open_task
from zenspeed.tasks.rows import RowTask

WORDS = ["river", "stone", "light", "paper", "green", "winter", "answer", "quiet", "window", "letter"]


def text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(3, 30))))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two hundred rows, a tenth of them copies, with columns for every task."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for number in range(200):
        context = text(rng)
        span = context.split()[1]
        rows.append(
            {
                "text": context, "label": ["a", "b"][number % 2], "target": text(rng), "question": text(rng),
                "context": context, "answer": {"text": [span], "answer_start": [context.index(span)]},
                "score": round(float(rng.random()), 3), "text_pair": text(rng),
            }
        )  # fmt: skip
        if number % 10 == 9:
            rows[-1] = {**rows[-2], "label": rows[-1]["label"] if number % 20 == 19 else rows[-2]["label"]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(table: Path, sets: list[str]) -> RowTask:
    common = [
        f"data.source={table}", f"data.cache={table.parent / 'cache'}", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=300",
        "model.preset=bert", "model.layers=1", "model.width=16", "model.heads=2", "model.context=64", "data.leakage=allow",
    ]  # fmt: skip
    task = open_task(load(Recipe, None, [*common, *sets]), None)
    assert isinstance(task, RowTask)
    return task


TASKS: dict[str, list[str]] = {
    "classification": ["task.kind=classification"],
    "classification, cleaned": ["task.kind=classification", "data.clean.duplicates=exact", "data.clean.lowercase=true"],
    "classification, near": ["task.kind=classification", "data.clean.duplicates=near"],
    "windows": ["task.kind=classification", "task.stride=4", "task.max_tokens=16"],
    "pairs": ["task.kind=classification", "task.text_pair=text_pair"],
    "by time": ["task.kind=classification", "data.hold_out=time", "data.hold_out_by=score"],
    "masked_lm": ["task.kind=masked_lm"],
    "span_qa": ["task.kind=span_qa"],
    "similarity": ["task.kind=similarity", "task.text_pair=text_pair", "task.score=score"],
    "seq2seq": ["task.kind=seq2seq", "model.preset=transformer", "tokenizer.kind=bpe"],
    "chat": ["task.kind=chat", "model.preset=llama", "tokenizer.kind=bpe"],
}


@pytest.mark.parametrize("name", TASKS)
def test_training_sees_the_same(name: str, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = opened(table, TASKS[name])
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", 1000)
    monkeypatch.setattr(rows_module, "BLOCK_CHARACTERS", 500)
    large = opened(table, TASKS[name])
    assert isinstance(large.train.rows, RowsOnDisk) and isinstance(small.train.rows, list)
    assert large.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert large.report == small.report
    for a, b in ((small.train, large.train), (small.validation, large.validation)):
        assert list(b.rows) == a.rows and b.owner.tolist() == a.owner.tolist()
        assert a.tokens.digest() == b.tokens.digest()
    for a, b in zip(small.micro_batches(0, [8, 8]), large.micro_batches(0, [8, 8]), strict=True):
        assert a.targets.equal(b.targets) and a.inputs.keys() == b.inputs.keys()
        assert all(torch.as_tensor(a.inputs[key]).equal(torch.as_tensor(b.inputs[key])) for key in a.inputs)
    assert not [path for path in (table.parent / "cache").rglob("*") if path.is_file()], "the files have no names"


@pytest.mark.parametrize("name", ["classification", "windows", "masked_lm", "span_qa", "similarity", "seq2seq", "chat"])
def test_many_rows_are_judged_as_few(name: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures and the answers of a large test set, of which no more than a block is held where rows stand apart."""
    sizes: list[int] = []

    def judged(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
        folder.mkdir()
        task = opened(table, [*TASKS[name], f"data.test={table}", "decode.max_tokens=4", "decode.beams=2"])
        model, place, predict = task.build_model(1), Place(nullcontext()), task.predict
        if type(task).predict is not RowTask.predict:
            monkeypatch.setattr(type(task), "predict", lambda task, *a: sizes.append(len(a[1])) or predict(*a))
        figures = task.finish(model, place, folder, lambda line: None) | task.evaluate(model, place)
        monkeypatch.undo()
        path = folder / "predictions.jsonl"
        answers = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        assert [path.name for path in folder.iterdir()] == ["predictions.jsonl"] * bool(answers)
        return {key: figure.value for key, figure in figures.items()}, answers

    few, said = judged(tmp_path / "few")
    assert max(sizes, default=0) in (0, 200)
    sizes.clear()
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", 1000)
    monkeypatch.setattr(rows_module, "BLOCK_CHARACTERS", 2000)
    many, again = judged(tmp_path / "many")
    assert many == pytest.approx(few, rel=1e-5) and len(said) == len(again) == (0 if name == "masked_lm" else 200)
    assert [a["prediction"] for a in again] == [pytest.approx(a["prediction"], abs=1e-5) for a in said]
    assert max(sizes, default=0) <= (200 if name == "similarity" else 20)


def test_a_row_that_cannot_be_used_is_named_by_its_number(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", 1000)
    monkeypatch.setattr(rows_module, "BLOCK_CHARACTERS", 500)
    lines = table.read_text().splitlines()
    lines[150] = json.dumps({"text": "a text", "text_pair": "another", "score": "many"})
    table.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"task.score: row \d+ of the .* rows has 'many'.*\(rows counted from row \d+ on\)"):
        opened(table, ["task.kind=similarity", "task.text_pair=text_pair", "task.score=score"])


def test_rows_on_disk_are_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "ä" * 50, "number": n, "inside": {"a": [n, None, 0.5]}} for n in range(100)]
    assert kept_rows(iter(rows), tmp_path) == rows
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", 1000)
    kept = kept_rows(iter(rows), tmp_path / "new")
    assert isinstance(kept, RowsOnDisk) and list(kept) == rows and len(kept) == 100
    assert kept[7] == kept[-93] == rows[7] and list(kept[10:60:7]) == rows[10:60:7]
    assert list(kept.take(np.array([3, 1])).take(np.array([1]))) == [rows[1]]
    with pytest.raises(IndexError):
        kept[100]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot be written.*data.cache"):
        kept_rows(iter(rows), tmp_path / "file")

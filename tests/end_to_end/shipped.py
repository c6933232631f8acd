"""Small data of the kind that each task needs, and the keys that make a shipped recipe read it and end after one step."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import torch

from zenspeed.models.build import build_model
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.recipe import TaskConfig
from zenspeed.text.tokenizer import Tokenizer

WORDS = [
    "the",
    "film",
    "was",
    "a",
    "long",
    "story",
    "of",
    "people",
    "who",
    "walk",
    "far",
    "and",
    "talk",
    "about",
    "good",
    "or",
    "bad",
    "weather",
]


def _text(path: Path, task: TaskConfig) -> None:
    path.write_text("\n\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 5]) for i in range(400)), encoding="utf-8")


def _labels(path: Path, task: TaskConfig) -> None:
    names = task.labels or ["bad", "good", "odd"]
    rows = [(f"{i} " + " ".join(WORDS[i % 9 :]), names[i % len(names)]) for i in range(60)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(task.text, task.label), *rows])


def _questions(path: Path, task: TaskConfig) -> None:
    context = " ".join(WORDS)
    rows = [
        {task.question: f"what is word {i} of {i % 5} ?", task.context: f"{i} {context}", task.answer: WORDS[i % 11]}
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _pairs(path: Path, task: TaskConfig) -> None:
    rows = [(f"{WORDS[i % 9]} number {i}", f"{i} {WORDS[i % 9]} it is") for i in range(60)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(task.text, task.text_pair), *rows])


def _targets(path: Path, task: TaskConfig) -> None:
    rows = [[task.text, task.target, *task.control]]
    for i in range(60):
        rows.append(
            [f"{i} " + " ".join(WORDS[i % 9 :]), " ".join(WORDS[: 1 + i % 7]), *(["zh", "en"][i % 2] for _ in task.control)]
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


DATA: dict[str, tuple[str, Callable[[Path, TaskConfig], None]]] = {
    "language_model": ("data.txt", _text),
    "masked_lm": ("data.txt", _text),
    "classification": ("data.csv", _labels),
    "span_qa": ("data.jsonl", _questions),
    "similarity": ("data.csv", _pairs),
    "seq2seq": ("data.csv", _targets),
    "chat": ("data.csv", _targets),
    "span_corruption": ("data.txt", _text),
}
"""Of every task kind: name of the file, and what writes it with the columns that the recipe's task names."""


def write_data(kind: str, folder: Path, task: TaskConfig) -> Path:
    """Rows, or text, for a recipe of `kind`."""
    name, write = DATA[kind]
    write(folder / name, task)
    return folder / name


def write_pretrained(folder: Path) -> Path:
    """A BERT of Hugging Face layout that takes no time, with its tokenizer."""
    tokenizer = Tokenizer.train("wordpiece", [" ".join(WORDS)] * 9, 60, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    config = ModelConfig(preset="bert", layers=1, width=16, heads=2, context=128)
    torch.manual_seed(0)
    to_huggingface(build_model(config, tokenizer.vocab_size, "masked"), folder)
    tokenizer.save(folder)
    return folder

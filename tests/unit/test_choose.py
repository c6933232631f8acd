"""A recipe for data alone: what is chosen follows from the rows, what the user sets wins, what cannot be told is asked for."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from zenspeed.config import InputError, load
from zenspeed.recipe import Recipe, TaskConfig
from zenspeed.tasks.choose import KINDS, choose

ENGLISH = "the film was a long story of people who walk far and talk about good or bad weather in a town".split()  # noqa: SIM905
CHINESE = "这部电影讲述了很多人走很远的路并谈论好天气和坏天气的故事"


def sentence(rng: random.Random, words: Sequence[str] = ENGLISH, most: int = 20) -> str:
    joiner = "" if words is CHINESE else " "
    return joiner.join(rng.choices(words, k=rng.randint(3, most)))


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return str(path)


def reviews(path: Path, count: int = 200, words: Sequence[str] = ENGLISH, most: int = 20) -> str:
    rng = random.Random(0)
    return table(path, [{"review": sentence(rng, words, most), "sentiment": "good" if i % 2 else "bad"} for i in range(count)])


KEYS = {"text": "review", "label": "sentiment"}


def test_a_recipe_that_loads_and_says_why(tmp_path: Path) -> None:
    source = reviews(tmp_path / "a.csv")
    chosen = choose(source, "classification", KEYS, [])
    recipe = load(Recipe, None, base=chosen.recipe)
    assert (recipe.task.kind, recipe.task.text, recipe.task.label) == ("classification", "review", "sentiment")
    assert recipe.data.source == source and recipe.tokenizer.kind == "wordpiece"
    assert recipe.model.architecture == "encoder" and (recipe.model.layers, recipe.model.width) == (2, 128)
    assert recipe.model.context == 32 and recipe.train.epochs == 8 and recipe.train.batch_size == 16
    said = "\n".join(chosen.lines)
    for part in ("200 rows", "2 labels in 'sentiment'", "alphabetic", "32 tokens: 100.0 % of rows fit", "8 epochs"):
        assert part in said, said
    assert choose(source, "classification", KEYS, []) == chosen  # nothing is drawn


def test_more_and_longer_text_gets_a_larger_model_and_windows(tmp_path: Path) -> None:
    source = reviews(tmp_path / "a.csv", 2500, most=600)
    recipe = load(Recipe, None, base=choose(source, None, KEYS, []).recipe)
    assert (recipe.model.layers, recipe.model.width) == (4, 192) and recipe.train.batch_size == 32
    assert recipe.model.context == 512 and recipe.task.stride == 128


def test_chinese_is_seen(tmp_path: Path) -> None:
    chosen = choose(reviews(tmp_path / "a.jsonl", words=CHINESE), None, KEYS, [])
    assert "Chinese text" in chosen.lines[1] and "reads Chinese by the character" in chosen.lines[2]


def test_what_the_user_sets_wins(tmp_path: Path) -> None:
    source, sets = reviews(tmp_path / "a.csv"), ["model.preset=lstm", "model.width=64", "train.steps=3", "train.batch_size=4"]
    chosen = choose(source, None, KEYS, sets)
    recipe = load(Recipe, None, sets, base=chosen.recipe)
    assert recipe.model.architecture == "recurrent" and recipe.model.width == 64 and recipe.model.pool == "last"
    assert recipe.train.steps == 3 and recipe.train.epochs is None and recipe.train.batch_size == 4
    sets = ["model.huggingface=folder"]
    recipe = load(Recipe, None, sets, base=choose(source, None, KEYS, sets).recipe)
    assert not recipe.optim.model_fields_set and not recipe.tokenizer.model_fields_set  # fine-tuning's own
    assert "layers" not in recipe.model.model_fields_set and recipe.task.max_tokens == 32 and recipe.train.epochs == 3


ROWS: dict[str, dict[str, str]] = {
    "classification": {"text": "{}", "label": "a b c d"},
    "seq2seq": {"text": "{}", "target": "{}"},
    "chat": {"text": "{}", "target": "{}"},
    "span_qa": {"question": "{}", "context": "{}", "answer": ""},
    "similarity": {"text": "{}", "text_pair": "{}"},
    "masked_lm": {"text": "{}"},
    "span_corruption": {"text": "{}"},
    "language_model": {"text": "{}"},
}


def rows_of(kind: str, count: int = 60) -> list[dict[str, str]]:
    rng = random.Random(1)
    return [{k: sentence(rng) if v == "{}" else v and v.split()[i % 4] for k, v in ROWS[kind].items()} for i in range(count)]


def test_keys_for_rows_alone_may_be_set(tmp_path: Path) -> None:
    source, test = reviews(tmp_path / "a.csv"), reviews(tmp_path / "test.csv", 20)
    sets = [f"data.test={test}", "data.hold_out=random", "train.curriculum=length"]
    chosen = choose(source, "classification", KEYS, sets)
    recipe = load(Recipe, None, sets, base=chosen.recipe)
    assert recipe.data.test == test and recipe.train.curriculum == "length"


@pytest.mark.parametrize("key", ["model.context", "task.max_tokens"])
def test_windows_fit_into_a_length_that_was_given(key: str, tmp_path: Path) -> None:
    rows = [{"text": "word " * 100, "label": "ab"[i % 2]} for i in range(20)]
    source = table(tmp_path / "a.jsonl", rows)
    recipe = load(Recipe, None, [f"{key}=24"], base=choose(source, "classification", {}, [f"{key}=24"]).recipe)
    assert recipe.task.stride == 6 and 24 in (recipe.model.context, recipe.task.max_tokens)


@pytest.mark.parametrize("kind", get_args(TaskConfig.model_fields["kind"].annotation))
def test_every_task_can_be_chosen(kind: str, tmp_path: Path) -> None:
    source = table(tmp_path / "a.jsonl", rows_of(kind))
    recipe = load(Recipe, None, base=choose(source, kind, {}, []).recipe)
    architectures = {"encoder": "encoder", "decoder": "decoder", "encoder_decoder": "encoder_decoder"}
    assert recipe.task.kind == kind and recipe.model.architecture == architectures[KINDS[kind].body]
    assert recipe.train.epochs is not None or recipe.train.minutes is not None


@pytest.mark.parametrize("kind", ["classification", "language_model"])
def test_a_task_is_told_by_its_columns(kind: str, tmp_path: Path) -> None:
    chosen = choose(table(tmp_path / "a.csv", rows_of(kind)), None, {}, [])
    assert chosen.recipe["task"]["kind"] == kind


BAD: dict[str, tuple[str | None, dict[str, str], str]] = {
    "a column that is not there": ("classification", KEYS | {"text": "reviw"}, "no column 'reviw' for --text; did you mean"),
    "a column that has another name": ("classification", {"text": "review"}, "no column 'label' for --label; name the column"),
    "a task that is not there": ("classify", KEYS, "--task classify: no such task; did you mean classification?"),
    "an option that is not there": (None, {"lable": "sentiment"}, "--lable: no such option; did you mean --label?"),
    "nothing that tells": (None, {}, "its columns (review, sentiment) do not tell what is to be learned"),
    "texts as labels": (None, {"text": "review", "label": "review"}, "different values in 200 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_told_is_asked_for(name: str, tmp_path: Path) -> None:
    kind, keys, message = BAD[name]
    with pytest.raises(InputError) as error:
        choose(reviews(tmp_path / "a.csv"), kind, keys, [])
    assert message in str(error.value)


def test_measured_numbers_are_no_labels(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"text": sentence(rng), "label": f"{rng.randint(0, 60) / 20:.2f}"} for _ in range(400)]
    with pytest.raises(InputError, match="holds measured numbers"):
        choose(table(tmp_path / "a.csv", rows), None, {}, [])
    halves = [{"text": sentence(rng), "label": str(rng.randint(2, 10) / 2)} for _ in range(100)]
    assert "9 labels" in choose(table(tmp_path / "b.csv", halves), None, {}, []).lines[1]

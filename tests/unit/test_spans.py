"""Extractive answers: places in characters are exact in the text as it was handed in, in windows, packed, in any language."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zenspeed.config import InputError, load
from zenspeed.data.rows import read_rows
from zenspeed.evaluate.answers import answer_figures, answer_scores
from zenspeed.evaluate.interval import Figure
from zenspeed.ops.pool import log_softmax_in_documents
from zenspeed.ops.span import best_spans
from zenspeed.recipe import Recipe, TaskConfig
from zenspeed.tasks.answers import answers_of
from zenspeed.tasks.base import Place
from zenspeed.tasks.spans import SpanTask
from zenspeed.text.tokenizer import Tokenizer

CONTEXT = (
    "Ångström  met Zoë — in “Köln”, 他在1998年\n去了北京。 It cost 3.50 €! The e\u0301nd 🎉 of it, then a long story of walks."
)
ANSWERS = ["Zoë", "“Köln”", "1998年", "北京", "3.50 €", "e\u0301nd 🎉", "long story of walks", "Ångström"]
HERE = Place(nullcontext())


def task_of(kind: str = "wordpiece", **keys: Any) -> SpanTask:
    tokenizer = Tokenizer.train(kind, [CONTEXT, "where when who what is it"] * 20, special_tokens=["[PAD]", "[CLS]", "[SEP]"])
    model = {"preset": "bert", "layers": 1, "width": 16, "heads": 2, "context": keys.pop("context", 128), "dropout": 0.0}
    recipe = load(Recipe, None, [], base={"task": {"kind": "span_qa", **keys}, "model": model, "train": {"precision": "fp32"}})
    return SpanTask.of_run(recipe, tokenizer)


def row(answer: str | None, context: str = CONTEXT, **more: Any) -> dict[str, Any]:
    return {"question": "what is it", "context": context, "answer": answer} | more


def oracle(task: SpanTask, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions of a model that knows every window's targets."""
    examples = task.encode(rows, "the rows")
    targets = examples.targets.astype(np.float64)
    none = (targets[:, 1] == 0).astype(np.float64)
    best = np.where(none == 1, -30.0, -0.01)
    read = np.column_stack([np.zeros(len(none)), best, np.where(none == 1, -0.01, -30.0), targets[:, :2] - targets[:, 2:3]])
    return list(task._answers(rows, task._spans(examples, read)))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "word", "char"])
@pytest.mark.parametrize("windows", [False, True])
def test_places_are_exact_in_the_text(kind: str, windows: bool) -> None:
    """Accents, full-width signs, an emoji of several tokens, letters of two code points, Chinese beside digits, windows."""
    task = task_of(kind, context=512 if not windows else 64 if kind == "char" else 32)
    assert windows == (len(task.encode([row("Zoë")], "x").tokens) > 1)
    for prediction, answer in zip(oracle(task, [row(a) for a in ANSWERS]), ANSWERS, strict=True):
        text, start, end = prediction["prediction"], prediction["start"], prediction["end"]
        assert CONTEXT[start:end] == text and answer in text, (kind, answer, text)
        # A token may be a word of more than the answer; where it is not, the place is the answer's own.
        assert text == answer or kind in ("word", "bpe"), (kind, answer, text)


def test_half_a_character_moves_no_place() -> None:
    context = "half \ud83d of it, then Zoë"
    (prediction,) = oracle(task_of(), [row("Zoë", context)])
    assert (prediction["start"], prediction["prediction"]) == (context.index("Zoë"), "Zoë")


def test_windows_hold_the_answer_or_point_at_the_first_token() -> None:
    task = task_of(context=24, stride=5)
    examples = task.encode([row("walks"), row(None), row("Ångström")], "the rows")
    assert int(examples.tokens.lengths.max()) == 24 and len(examples.tokens) == 9
    for number, holds in ((0, True), (1, False), (2, True)):
        own = examples.targets[examples.owner == number]
        assert bool((own[:, 1] > 0).any()) == holds
    # Every token of the context is in some window, and neighbours share at least five.
    starts = examples.targets[examples.owner == 0, 3]
    room = 24 - 3 - 3
    assert starts[0] == 0 and (np.diff(starts) <= room - 5).all()


def test_best_span_of_each_document_as_by_trying_all() -> None:
    generator = torch.Generator().manual_seed(3)
    documents = torch.tensor([[0, 0, 0, 0, 2, 2, 2, -1], [1, 1, 3, 3, 3, 3, 3, 3]])
    scores = torch.randn(2, 8, 2, generator=generator)
    log_p = log_softmax_in_documents(scores, documents, 5)
    flat = documents.flatten()
    allowed = torch.tensor([0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0], dtype=torch.bool)
    for longest in (1, 2, 9):
        best, spans = best_spans(log_p, flat, allowed, 5, longest)
        for number in range(5):
            places = [i for i in range(16) if flat[i] == number and allowed[i]]
            tried = {(i, j): float(log_p[i, 0] + log_p[j, 1]) for i in places for j in places if i <= j < i + longest}
            if not tried:
                assert best[number] == -torch.inf
                continue
            assert tuple(spans[number].tolist()) == max(tried, key=tried.__getitem__)
            assert float(best[number]) == pytest.approx(max(tried.values()))


def test_packed_reading_is_that_of_each_window_alone() -> None:
    task = task_of(context=24)
    model = task.build_model(1).eval()
    rows = [row(a) for a in ANSWERS]
    examples = task.encode(rows, "the rows")
    together = task.outputs(model, examples, HERE, (5,), task._read)
    for i in (0, 3, len(together) - 1):
        batch = task.collate(examples, np.array([i]), packed=False)
        with torch.no_grad():
            assert together[i] == pytest.approx(task._read(model, batch)[0].numpy(), abs=1e-5)
            loss = float(task.loss(model, batch)) / task.num_targets(batch)
        assert together[i, 0] == pytest.approx(loss, abs=1e-5)


def test_rows_to_be_answered_need_no_answer() -> None:
    task = task_of()
    rows = [{"question": "what is it", "context": CONTEXT, "id": 7}, {"question": "who", "context": " \t "}]
    first, second = task.predict(task.build_model(1), rows, HERE)
    assert first["id"] == 7 and "reference" not in first and 0 <= first["score"] <= 1
    assert second["prediction"] == "" and second["start"] is None
    with pytest.raises(InputError, match=r"task.context: row 1 of the rows has no 'context'; its columns: question, text"):
        task.predict(task.build_model(1), [{"question": "q", "text": "t"}], HERE)


def test_squad_and_lists_of_rows_are_read(tmp_path: Path) -> None:
    answers = [{"text": "Köln", "answer_start": CONTEXT.index("Köln")}, {"text": "“Köln”", "answer_start": CONTEXT.index("“")}]
    qas = [
        {"id": "a", "question": "where", "answers": answers},
        {"id": "b", "question": "why", "answers": [], "is_impossible": True},
        {"id": "c", "answers": []},
    ]
    squad = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": CONTEXT, "qas": qas[:2]}]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad))
    rows = list(read_rows(str(path)))
    assert [r["id"] for r in rows] == ["a", "b"] and rows[0]["title"] == "T"
    task = TaskConfig(kind="span_qa")
    assert [a.text for a in answers_of(rows[0], task, "")] == ["Köln", "“Köln”"]
    assert answers_of(rows[1], task, "") == []
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert list(read_rows(str(tmp_path / "list.json"))) == rows
    squad["data"][0]["paragraphs"][0]["qas"] = qas  # type: ignore[index]
    path.write_text(json.dumps(squad))
    with pytest.raises(InputError, match=r"data\[0\].paragraphs\[0\].qas\[2\]: is not in SQuAD's format: KeyError 'question'"):
        list(read_rows(str(path)))
    path.write_text('{"rows": []}')
    with pytest.raises(InputError, match="neither a list of rows nor SQuAD's format"):
        list(read_rows(str(path)))


BAD = {
    "elsewhere": (row("Zoë", answer_start=3), r"row 1 of x: 'Zoë' is not at 3 of the context, there is 'str'; .* it is: 14"),
    "beyond the end": (row("Zoë", answer_start=900), r"there is nothing \(it has \d+ characters\); .* it is: 14"),
    "before the beginning": (row("Zoë", answer_start=-3), "is not at -3"),
    "no number": (row("Zoë", answer_start="first"), "task.answer_start: row 1 of x has 'first'; give the place"),
    "another case": (row("ZOË"), "'ZOË' does not stand in the context; nearest: 'Zoë' at 14, in another case"),
    "a letter wrong": (row("long stoxy of"), "nearest: 'long story of' at 86"),
    "nowhere": (row("ΩΩ"), "nothing of it is there"),
    "SQuAD without starts": (row(None) | {"answer": {"text": ["a"], "answer_start": [1, 2]}}, "1 answers, but 2 values"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_is_not_where_it_is_said_to_be(name: str) -> None:
    bad, message = BAD[name]
    with pytest.raises(InputError, match=message):
        task_of().encode([bad], "x")


def test_overlap_that_leaves_nothing_new() -> None:
    with pytest.raises(InputError, match=r"task.stride: 20 tokens of overlap leave nothing new in windows of 10"):
        task_of(context=24, stride=20)


def test_answers_are_scored_as_squad_does() -> None:
    references = [["The Eiffel Tower", "tower"], ["北京大学"], [], [], ["{"]]
    exact, f1 = answer_scores(references, ["the eiffel tower!", "北京", "", "something", "{"])
    assert exact.tolist() == [1, 0, 1, 0, 1]
    assert f1.tolist() == pytest.approx([1, 2 / 3, 1, 0, 1])
    figures = answer_figures(zip(references, ["", "北京", "", "something", "{"], strict=True))
    values = {name: figure.value for name, figure in figures.items() if isinstance(figure, Figure)}
    assert values["refused_rightly"] == 0.5 and values["refused_wrongly"] == pytest.approx(1 / 3)

"""Rows over the worker: read once, answered beside rows like them, and as if they were alone."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.local_backend import OPTIONS
from zenspeed.models.build import build_model
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.serve.batching import Busy
from zenspeed.serve.opened import Opened, open_model
from zenspeed.serve.predicting import Predictor
from zenspeed.serve.vectors import decode_vector
from zenspeed.serve.waiting import BATCH_TOKENS, ROWS, Job, Row, take_batch
from zenspeed.serve.worker import Worker
from zenspeed.text.tokenizer import Tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "it", "sleeps"]
TEXTS = [" ".join(WORDS[i % 13] for i in range(k, k + n)) for k, n in enumerate((3, 40, 5, 90, 12, 2, 60, 7, 30, 4))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train("wordpiece", [" ".join(WORDS)] * 20, 100)
    config = ModelConfig(preset="bert", layers=2, width=32, heads=2, feed_forward=64, context=64)
    for name, head, labels in (("judge", "label", 3), ("vectors", "embedding", 0)):
        model: Any = build_model(config, tokenizer.vocab_size, head, labels)  # type: ignore[arg-type]
        model.init_weights(0)
        to_huggingface(model, root / name, tokenizer.end_of_text)
        tokenizer.save(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def answer(opened: Opened, op: str, rows: list[Any]) -> dict[str, Any]:
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    worker = Worker(opened, OPTIONS, events.put)
    worker.handle({"id": "r", "op": op, "rows": rows})
    event = events.get(timeout=30)
    worker.close()
    return event


@pytest.mark.parametrize(("name", "op"), [("judge", "predict"), ("judge", "words"), ("vectors", "embed")])
def test_a_text_is_tokenized_once(folders: dict[str, Path], name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(folders[name])
    assert opened.tokenizer is not None
    tokens = sum(len(opened.tokenizer.encode(text)) for text in TEXTS[:3])
    seen, encode_batch = Counter[str](), Tokenizer.encode_batch

    def counting(self: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        seen.update(texts)
        return encode_batch(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counting)
    texts = TEXTS[:1] if op == "words" else TEXTS[:3]
    event = answer(opened, op, texts if op == "embed" else [{"text": text} for text in texts])
    assert event["event"] == "result"
    assert {seen[text] for text in texts} == {1}
    assert max(seen.values()) == 1
    assert op == "words" or event["prompt_tokens"] == tokens


def rows_of(lengths: Sequence[int], work: str = "predict") -> list[Row]:
    job = Job(work, len(lengths), lambda results: None)
    return [Row(job, i, None, None, length) for i, length in enumerate(lengths)]


def taken(waiting: list[Row]) -> list[int]:
    return [row.length for row in take_batch(waiting)]


def test_rows_of_like_length_are_taken_and_the_oldest_is_among_them() -> None:
    waiting = rows_of([20, 500, 480, 22, 510, 18, 90])
    assert taken(waiting) == [20, 22, 18, 90]  # 5 × 480 tokens would be too many
    assert [row.length for row in waiting] == [500, 480, 510]  # in their order
    assert taken(waiting) == [500, 510]
    assert taken(waiting) == [480]
    assert not waiting
    assert taken(rows_of([30, 250, 30, 250] * 20)) == [30] * (BATCH_TOKENS // 30)
    assert taken(rows_of([250, 30] * 20)) == [250] * (BATCH_TOKENS // 250)
    assert [row.length for row in take_batch(rows_of([30] * 9), 100)] == [30] * 3


def test_nobody_is_passed_over_for_ever() -> None:
    waiting = rows_of([5, 5, BATCH_TOKENS * 2])
    batches = []
    for _ in range(3):  # short ones keep coming
        waiting += rows_of([5] * 300)
        batches.append(taken(waiting))
    assert batches[0] == [5] * (BATCH_TOKENS // 5)
    assert batches[1] == [BATCH_TOKENS * 2]  # longer than the budget: alone
    assert batches[2] == [5] * (BATCH_TOKENS // 5)


def test_a_batch_is_of_one_kind_of_work_and_has_its_most_rows() -> None:
    waiting = [*rows_of([9], "embed"), *rows_of([9, 9]), *rows_of([9], "embed")]
    assert {row.job.work for row in take_batch(waiting)} == {"embed"}
    assert [row.job.work for row in waiting] == ["predict", "predict"]
    assert len(take_batch(rows_of([0] * 1000))) == ROWS  # lengths that are not known are alike


@pytest.mark.usefixtures("two_threads")
def test_answers_do_not_depend_on_who_shares_the_batch(folders: dict[str, Path]) -> None:
    many = TEXTS * 12
    judge, vectors = open_model(folders["judge"]), open_model(folders["vectors"])
    alone = [answer(judge, "predict", [{"text": text}])["value"][0] for text in TEXTS]
    event = answer(judge, "predict", [{"text": text} for text in many])
    assert [row["text"] for row in event["value"]] == many
    for row, expected in zip(event["value"], alone * 12, strict=True):
        assert row["prediction"] == expected["prediction"]
        assert row["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    own = [decode_vector(answer(vectors, "embed", [text])["value"][0]) for text in TEXTS]
    found = [decode_vector(vector) for vector in answer(vectors, "embed", many)["value"]]
    np.testing.assert_allclose(found, own * 12, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_two_batches_are_answered_at_a_time_on_a_core_each(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(folders["judge"])
    inside, both, threads = threading.Event(), threading.Barrier(2, timeout=20), list[int]()

    def predict(model: object, rows: list[Any], place: object, tokens: object) -> list[Any]:
        threads.append(torch.get_num_threads())
        inside.set()
        both.wait()
        return rows

    monkeypatch.setattr(opened.task, "predict", predict)
    predictor, answers = Predictor(opened), queue.Queue[Any]()
    predictor.submit("predict", [1], answers.put)
    assert inside.wait(20)
    predictor.submit("predict", [2], answers.put)
    assert sorted(answers.get(timeout=30) for _ in range(2)) == [[1], [2]]
    predictor.close()
    assert threads == [2, 1]  # who comes first has all cores


@pytest.mark.usefixtures("two_threads")
def test_a_row_that_fails_fails_its_own_request(folders: dict[str, Path]) -> None:
    opened = open_model(folders["judge"])
    assert opened.tokenizer is not None
    predictor = Predictor(opened, max_queue=len(TEXTS) + 1)
    answers: dict[str, queue.Queue[Any]] = {"good": queue.Queue(), "bad": queue.Queue()}
    tokens = [[ids] for ids in opened.tokenizer.encode_batch(TEXTS)]
    with predictor._changed:  # so that all wait together
        predictor.submit("predict", [{"text": text} for text in TEXTS[1:]], answers["good"].put, tokens[1:])
        predictor.submit("predict", [{"no": "text"}], answers["bad"].put, tokens[1:2])
        with pytest.raises(Busy):
            predictor.submit("predict", [{"text": text} for text in TEXTS[:2]], answers["good"].put, tokens[:2])
    assert isinstance(answers["bad"].get(timeout=30), KeyError)
    good = answers["good"].get(timeout=30)
    assert [row["text"] for row in good] == TEXTS[1:]
    predictor.close()
    assert predictor.waiting == 0
    assert predictor.rows == len(TEXTS) - 1
    assert all(queue.empty() for queue in answers.values())

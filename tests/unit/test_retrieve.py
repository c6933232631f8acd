"""Search and answers out of an index: BM25 by its formula, passages with exact places, and "not found" where it belongs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.shipped import WORDS, write_pretrained
from zenspeed.config import InputError, load
from zenspeed.evaluate.interval import Figure
from zenspeed.models.hf import to_huggingface
from zenspeed.recipe import Recipe
from zenspeed.retrieve.answer import Found, answer, calibrate, hits_without_answer, judge
from zenspeed.retrieve.bm25 import BM25, words_of
from zenspeed.retrieve.documents import Document, cut, read_documents
from zenspeed.retrieve.embed import Reader, open_embedder, open_reader
from zenspeed.retrieve.index import Index, build_index, open_index
from zenspeed.tasks.base import place_of
from zenspeed.tasks.spans import SpanTask
from zenspeed.text.tokenizer import Tokenizer

TEXTS = [
    "The film was long.",
    "Weather, weather and a long walk!",
    "北京的天气很好，我们去散步。",
    "People talk about the good film",
]
FAQ = [Document(str(i), text, {"answer": f"answer {i}"}) for i, text in enumerate(TEXTS)]


def test_bm25_by_its_formula() -> None:
    bm25 = BM25.build(TEXTS)
    lengths = [len(words_of(text)) for text in TEXTS]
    for query in ("long weather", "film film people", "天气", "nothing of it"):
        for i, text in enumerate(TEXTS):
            wanted = 0.0
            for word in words_of(query):
                n, tf = sum(word in words_of(t) for t in TEXTS), words_of(text).count(word)
                idf = math.log(1 + (len(TEXTS) - n + 0.5) / (n + 0.5))
                wanted += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * lengths[i] / np.mean(lengths)))
            assert bm25.scores(query)[i] == pytest.approx(wanted, rel=1e-5)


def test_passages_lose_no_text_and_know_their_places() -> None:
    rng = np.random.default_rng(0)
    words = ["word", "a", "sentence.", "\n\n", "  ", "中文。", "longer-word"]
    texts = [" ".join(rng.choice(words, size=size)) for size in (400, 3, 90)] + ["  \n "]
    passages = cut(texts, 100)
    kept = ["" for _ in texts]
    for document, start, end in zip(*passages, strict=True):
        part = texts[document][start:end]
        assert 0 < len(part) <= 200 and part == part.strip()
        kept[document] += part
    assert ["".join(k.split()) for k in kept] == ["".join(t.split()) for t in texts]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def index(pretrained: Path) -> Index:
    return build_index(FAQ, open_embedder(pretrained))


def test_search_by_words_by_vectors_and_by_both(index: Index) -> None:
    by_words, by_vectors, by_both = (index.search([TEXTS[3]], 3, how)[0] for how in ("words", "vectors", "both"))  # type: ignore[arg-type]
    assert by_words[0].document.id == by_vectors[0].document.id == by_both[0].document.id == "3"
    assert by_vectors[0].score == pytest.approx(1, abs=1e-5) and by_words[0].score > by_words[1].score
    assert len(by_vectors) == 3 and len(index.search(["weather"], 3, "words")[0]) == 1
    assert index.search(["qqq"], 3, "words") == [[]]
    assert index.search(["散步"], 1, "words")[0][0].text == TEXTS[2]


def test_an_index_is_kept_and_opened(index: Index, pretrained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index.save(folder)
    again = open_index(folder)
    for how in ("words", "both"):
        first, second = (i.search(["a long film"], 4, how)[0] for i in (index, again))  # type: ignore[arg-type]
        assert [h.as_dict() for h in first] == [h.as_dict() for h in second]
    again.save(folder)  # in its own place
    words = open_index(folder, vectors=False)
    assert words.vectors is None
    with pytest.raises(InputError, match="this index has no vectors; make it with a model"):
        words.search(["x"], 1, "vectors")


def test_an_index_that_is_not_one(index: Index, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index there; make one: zenspeed index DOCUMENTS"):
        open_index(tmp_path)
    folder = tmp_path / "index"
    index.save(folder)
    other = write_pretrained(tmp_path / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({k: v.roll(1, 0) for k, v in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="was made with another model"):
        open_index(folder, other)
    (folder / "words.json").write_text("[")
    with pytest.raises(InputError, match="the index is damaged"):
        open_index(folder)
    (folder / "index.json").write_text(json.dumps({"magic": "zenspeed index", "version": 9}))
    with pytest.raises(InputError, match="not an index of version 1"):
        open_index(folder)
    with pytest.raises(InputError, match="is not empty and holds no index"):
        index.save(pretrained)


def test_documents_of_rows_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "one", "answer": "1"}\n{"id": "y", "text": " "}\n')
    assert read_documents(str(tmp_path / "a.jsonl")) == [Document("x", "one", {"answer": "1"})]
    (tmp_path / "texts").mkdir()
    for name in ("b.txt", "c.md"):
        (tmp_path / "texts" / name).write_text(f"# {name}\n\nbody\n")
    assert [d.id for d in read_documents(str(tmp_path / "texts"))] == ["b.txt", "c.md"]
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "one"}\n{"id": "x", "text": "two"}\n')
    with pytest.raises(InputError, match="two documents have the id 'x'"):
        read_documents(str(tmp_path / "a.jsonl"))


def test_an_empty_knowledge_base(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    with pytest.raises(InputError, match="holds no text to search in"):
        read_documents(str(tmp_path / "blank.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_documents(str(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="the documents hold no text"):
        build_index([])


def test_stored_answers(index: Index) -> None:
    given, refused, nothing = (
        answer(index, [question], how=how, refuse_below=least)[0]  # type: ignore[arg-type]
        for question, how, least in ((TEXTS[1], "both", 0.9), (TEXTS[1], "both", 1.5), ("qqq", "words", None))
    )
    assert (given.answer, given.document, given.start) == ("answer 1", "1", None)
    assert not refused.found and refused.best == "answer 1" and "document" not in refused.as_dict()
    assert (nothing.answer, nothing.hits) == ("", [])
    with pytest.raises(InputError, match="has no column 'answer'; give a reader"):
        answer(build_index([Document("0", "long film", {})]), ["film"])


def reader() -> Reader:
    tokenizer = Tokenizer.train("wordpiece", TEXTS * 9, 120, special_tokens=["[PAD]", "[CLS]", "[SEP]"])
    model = {"preset": "bert", "layers": 1, "width": 16, "heads": 2, "context": 32, "dropout": 0.0}
    recipe = load(Recipe, None, [], base={"task": {"kind": "span_qa"}, "model": model, "train": {"precision": "fp32"}})
    task = SpanTask.of_run(recipe, tokenizer)
    return Reader(task, task.build_model(1).eval())


def test_answers_that_are_read_stand_in_their_document() -> None:
    text = "\n\n".join([" ".join(WORDS)] * 3 + TEXTS + [" ".join(WORDS)] * 3)
    made = build_index([Document("doc", text, {})], passage_characters=50)
    assert len(made) > 3
    for found in answer(made, ["what is the weather", "good film"], reader(), k=3, refuse_below=0.0):
        assert found.found and found.start is not None and text[found.start : found.end] == found.answer
    assert not any(found.found for found in answer(made, ["weather"], reader(), refuse_below=2.0))


def test_of_two_passages_the_one_that_has_the_words_is_believed() -> None:
    made, reads = build_index([Document(str(i), text, {}) for i, text in enumerate(TEXTS)]), reader()
    (own,) = made.search(["good film"], 2, "words")
    first, second = (hit._replace(score=score) for hit, score in zip(own, (1e9, 1e-9), strict=True))
    for hits in ([first, second], [second, first]):
        found = answer(made, ["good film"], reads, hits=[hits], refuse_below=0.0)[0]
        assert found.document == first.document.id and 0.99 < found.score <= 1
    alone = answer(made, ["good film"], reads, hits=[[first._replace(score=1.0)]], refuse_below=0.0)[0]
    row = {"question": "good film", "context": first.text}
    (span,) = reads.task.find(reads.model, [row], place_of(reads.task.recipe))
    assert alone.score == pytest.approx(span.score)  # a passage of score 1 leaves a reader's probability as it is


def test_a_reader_of_hugging_face_layout_reads_as_it_did(pretrained: Path, tmp_path: Path) -> None:
    ours = reader()
    to_huggingface(ours.model, tmp_path / "reader")
    ours.task.tokenizer.save(tmp_path / "reader")
    rows = [{"question": "what is the weather", "context": text} for text in TEXTS]
    theirs = open_reader(tmp_path / "reader")
    first, second = (r.task.predict(r.model, rows, place_of(r.task.recipe)) for r in (ours, theirs))
    assert [p["prediction"] for p in first] == [p["prediction"] for p in second]
    with pytest.raises(InputError, match="was saved without a span head"):
        open_reader(pretrained)


def found(score: float, best: str, hits: Any = ()) -> Found:
    return Found("q", best, score, best, None, None, None, list(hits))


def test_calibration_takes_the_best_threshold() -> None:
    # Right answers score high, wrong ones and those of questions without an answer low.
    answers = [found(0.9, "a"), found(0.8, "a"), found(0.5, "b"), found(0.4, "x"), found(0.4, "x"), found(0.1, "x")]
    references = [["a"], ["a"], ["c"], [], [], []]
    least = calibrate(answers, references).refuse_below
    given = [one.score >= least for one in answers]
    assert given[:2] == [True, True] and not any(given[3:])
    assert calibrate(answers[:2], [["a"], ["a"]]).refuse_below <= 0.0  # nothing speaks for refusing
    assert calibrate(answers[3:], references[3:]).refuse_below > 0.4  # nothing speaks for answering
    with pytest.raises(InputError, match="no questions"):
        calibrate([], [])


def test_calibration_weighs_refusals_as_answers_however_few() -> None:
    # Nine right answers, one of them below the score of the one question without an answer.
    answers = [found(0.9, "a")] * 8 + [found(0.2, "a"), found(0.4, "x")]
    chosen = calibrate(answers, [["a"]] * 9 + [[]])
    assert 0.4 < chosen.refuse_below < 0.9 and chosen.refused == 1 and chosen.f1 == chosen.answered == pytest.approx(8 / 9)
    all_of_it = calibrate(answers, [["a"]] * 9 + [[]], keep=1.0)
    assert all_of_it.refuse_below <= 0.2 and (all_of_it.f1, all_of_it.refused) == (1, 0)
    assert calibrate(answers, [["a"]] * 9 + [[]], keep=0.8).refused == 1
    with pytest.raises(InputError, match="keep 95 is no share; give 0 to 1"):
        calibrate(answers, [["a"]] * 9 + [[]], keep=95)


def test_questions_are_asked_again_without_what_answers_them(index: Index) -> None:
    questions, hit = [TEXTS[0], TEXTS[1], "film"], index.search(["film"], 1)[0]
    without = hits_without_answer(index, questions, [["answer 0"], ["answer 1"], []], ["0", None, None], k=3, how="vectors")
    assert [{h.document.id for h in hits} for hits in without] == [{"1", "2", "3"}, {"0", "2", "3"}, set()]
    # What is asked again has no answer, but where it found nothing, or the answer all the same.
    again = [found(0.6, "x", hit), found(0.0, ""), found(0.7, "a", hit)]
    chosen = calibrate([found(0.8, "a"), found(0.7, "a"), found(0.9, "a")], [["a"]] * 3, again)
    assert (chosen.with_answer, chosen.without_answer) == (3, 1) and 0.6 < chosen.refuse_below < 0.7
    assert calibrate([found(0.8, "a")] * 3, [["a"]] * 3).refuse_below <= 0


def test_figures_of_answers(index: Index) -> None:
    questions = [TEXTS[0], TEXTS[1], "something else"]
    said = answer(index, questions, k=3, how="vectors", refuse_below=0.99)
    figures = judge(said, [["answer 0"], ["answer 1"], []], ["0", None, None])
    values = {name: figure.value for name, figure in figures.items() if isinstance(figure, Figure)}
    assert values["exact_match"] == values["recall@1"] == values["mrr"] == values["refused_rightly"] == 1
    assert values["refused_wrongly"] == 0

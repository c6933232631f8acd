"""Cleaning: each step alone, its count, personal data by checksum, duplicates while they stream."""

from __future__ import annotations

import random
import string
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest

from zenspeed.config import InputError
from zenspeed.data.distinct import Distinct, Hashes
from zenspeed.recipe import DataConfig
from zenspeed.text.clean import Cleaner
from zenspeed.text.clean_config import CleanConfig
from zenspeed.text.pii import is_chinese_id, passes_luhn, scrub


def cleaner(**config: Any) -> Cleaner:
    return Cleaner(CleanConfig.model_validate(config))


def test_nothing_is_done_unless_asked_for() -> None:
    text = "<b>ﬁ</b>  The CAFÃ© a@b.org 4111 1111 1111 1111, e\u0301 是的 "
    assert cleaner()(text) == text
    assert not CleanConfig().does_anything
    assert DataConfig().clean == CleanConfig()


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        ({"repair": True}, "cafÃ© â€œso", "café “so"),
        ({"unicode": "NFC"}, "e\u0301ﬁ", "éﬁ"),
        ({"unicode": "NFKC"}, "ﬁＡ１", "fiA1"),
        ({"markup": "tags"}, "<p>One &amp; <b>two</b><script>x()</script></p><p>three<br/>four</p>", "One & two\nthree\nfour"),
        ({"pii": True}, "ask a.b+c@mail.example.org now", "ask <MAIL> now"),
        ({"lowercase": True}, "ABC Ünd", "abc ünd"),
        ({"punctuation": True}, "Well, don't! 好，的。(ok) a_b", "Well don't 好 的 ok a b"),
        ({"stop_words": ["en"]}, "The model of the kitten", "model kitten"),
        ({"stop_words": ["zh"]}, "我们 的 模型", "模型"),
    ],
)
def test_step_changes_what_it_says_and_is_counted(config: dict[str, Any], text: str, expected: str) -> None:
    clean = cleaner(**config)
    assert clean(text) == expected
    assert clean("123 xyzzy") == "123 xyzzy"
    assert clean.as_dict()["changed"] == {next(iter(config)): 1}
    assert clean.texts == 2


def test_article_of_a_page() -> None:
    body = "".join(f"<p>The {n}th paragraph of the article tells at length what the article is about.</p>" for n in range(9))
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/a'>About us</a></li></ul></nav>"
    page = f"<html><body>{menu}<article><h1>Title</h1>{body}</article><footer>Copyright</footer></body></html>"
    text = cleaner(markup="article")(page)
    assert text is not None
    assert "8th paragraph" in text
    assert "About us" not in text and "<p>" not in text


def test_filters_leave_out_and_count() -> None:
    clean = cleaner(languages=["en"], min_characters=10, max_characters=60)
    kept = [
        clean(t)
        for t in ("This is a plain English sentence.", "这是一个很普通的中文句子。", "Too short", "is of the " * 9, "  ")
    ]
    assert [text is not None for text in kept] == [True, False, False, False, False]
    assert clean.dropped.total() == 4
    assert set(clean.dropped) == {"languages", "length"}
    with pytest.raises(InputError, match="'xx' is not known"):
        cleaner(languages=["xx"])
    with pytest.raises(InputError, match="no list for 'xx'"):
        cleaner(stop_words=["xx"])


# ---- personal data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("card 4111 1111 1111 1111.", "card <CARD>."),
        ("card 4111-1111-1111-1112.", "card 4111-1111-1111-1112."),  # Luhn
        ("378282246310005", "<CARD>"),
        ("号码11010519491231002X。", "号码<ID>。"),  # the example of GB 11643
        ("110105194912310021", "110105194912310021"),  # check character
        ("110105194913310028", "110105194913310028"),  # month 13
        ("ssn 078-05-1120", "ssn <ID>"),
        ("ssn 666-05-1120 000-12-1234 987-65-4320", "ssn 666-05-1120 000-12-1234 987-65-4320"),
        ("+86 138 1234 5678, 13812345678, 010-62345678", "<PHONE>, <PHONE>, <PHONE>"),
        ("(212) 555-0123 or +1 212-555-0123 or 212-555-0123", "<PHONE> or <PHONE> or <PHONE>"),
        ("in 2024, 1,234,567 and 3.14159 of 100-200", "in 2024, 1,234,567 and 3.14159 of 100-200"),
        ("2024-01-02 10:20:30, 192.168.100.200", "2024-01-02 10:20:30, 192.168.100.200"),
        ("me@home and @someone", "me@home and @someone"),
    ],
)
def test_personal_data(text: str, expected: str) -> None:
    assert scrub(text)[0] == expected


def test_tags_are_counted() -> None:
    assert scrub("a@b.org c@d.org 4111111111111111")[1] == Counter({"<MAIL>": 2, "<CARD>": 1})
    clean = cleaner(pii=True)
    clean("a@b.org")
    assert clean.as_dict()["tags"] == {"<MAIL>": 1}


def test_checksums_catch_every_single_wrong_digit() -> None:
    card, number = "5555555555554444", "11010519491231002X"
    assert passes_luhn(card) and is_chinese_id(number)
    for i in range(16):
        wrong = [card[:i] + d + card[i + 1 :] for d in string.digits if d != card[i]]
        assert not any(map(passes_luhn, wrong))
    for i in range(17):
        wrong = [number[:i] + d + number[i + 1 :] for d in string.digits if d != number[i]]
        assert not any(map(is_chinese_id, wrong))


# ---- duplicates


def test_exact_duplicates_leave_the_first() -> None:
    distinct = Distinct("exact")
    assert list(distinct(["a", "b", "a", "A", "b"])) == ["a", "b", "A"]
    assert distinct.dropped == 2


def test_near_duplicates_against_true_similarity() -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(60))

    originals = [text() for _ in range(300)]
    near = [t[:-3] + "xyz" for t in originals]  # similarity above 0.95
    far = [t[: len(t) // 2] + text()[: len(t) // 2] for t in originals]  # about a third
    distinct = Distinct("near")
    assert list(distinct([*originals, *near, *far])) == [*originals, *far]
    assert distinct.dropped == 300


def test_hashes_are_a_set_however_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenspeed.data.distinct._BUFFER", 64)
    rng = np.random.default_rng(0)
    values = [*rng.integers(0, 2000, 5000).tolist(), 2**64 - 1, 0, 2**64 - 1]
    hashes, known = Hashes(), set()
    for value in values:
        assert hashes.add(value) == (value not in known)
        known.add(value)


def test_near_duplicates_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenspeed.data.distinct._BUFFER", 256)
    distinct = Distinct("near")
    distinct._near = type(distinct._near)(kept=512)
    rng = random.Random(1)
    tracemalloc.start()
    kept = sum(1 for _ in distinct("".join(rng.choices(string.ascii_lowercase, k=40)) for _ in range(1500)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == 1500
    assert peak < 12_000_000

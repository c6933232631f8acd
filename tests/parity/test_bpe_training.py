"""Training a byte-level BPE by counted words gives the tokenizer that Hugging Face's trainer gives, to the letter."""

from __future__ import annotations

import itertools
import random

import pytest
from tokenizers import Regex, pre_tokenizers

import zenspeed.text.pretokens as pretokens
from zenspeed.data.python_docs import python_docs
from zenspeed.text.bpe import train_bpe, train_bpe_by_tokenizers
from zenspeed.text.fast import PROBE
from zenspeed.text.splits import END_OF_TEXT, SPLIT

PARTS = [
    *"abcdeé中文字的机器学习ſßKกาสวัสดีНрусский नमस्ते👩‍👩‍👧 \n\t\r\x1c\x85\u2028\u00a0\u3000'_.,#0123٣²Ⅷ",
    "'s", "'LL", " the", "  ", "\n\n", "\r\n", "HTMLParser", "don't", "=" * 40, "\ud800", "\x00", END_OF_TEXT,
]  # fmt: skip


def some_texts(seed: int, num: int) -> list[str]:
    rng = random.Random(seed)
    few = rng.sample(PARTS, 12)  # few parts: many words of one count, so that ties decide
    return ["".join(rng.choices(few if i % 2 else PARTS, k=rng.randrange(200))) for i in range(num)]


@pytest.mark.parametrize("seed", range(6))
def test_random_text(seed: int) -> None:
    texts = [*PROBE, *some_texts(seed, 60)]
    for size in (300, 500, 4000):
        assert train_bpe(texts, size, [END_OF_TEXT]).to_str() == train_bpe_by_tokenizers(texts, size, [END_OF_TEXT]).to_str()


def test_real_text_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list(itertools.islice(python_docs(), 300))
    expected = train_bpe_by_tokenizers(texts, 2000, [END_OF_TEXT]).to_str()
    assert train_bpe(texts, 2000, [END_OF_TEXT]).to_str() == expected
    monkeypatch.setattr(pretokens, "_FRAME_CHARACTERS", 5000)
    monkeypatch.setattr(pretokens, "_MOST_WORDS", 100)
    assert train_bpe(iter(texts), 2000, [END_OF_TEXT]).to_str() == expected


@pytest.mark.parametrize("special", [["the", "a", END_OF_TEXT], ["[CLS]", "ā", "中"], ["ŧ", END_OF_TEXT]])
def test_special_tokens_that_are_also_pieces_of_text(special: list[str]) -> None:
    texts = ["the cat sat on the mat, then the other cat; the end. ŧŧ ā中中"] * 5
    assert train_bpe(texts, 400, special).to_str() == train_bpe_by_tokenizers(texts, 400, special).to_str()


def test_a_piece_is_split_as_tokenizers_does() -> None:
    """Every character on each side of what decides: a letter, a digit, a blank, a mark, a line's end, a contraction."""
    exact = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    rng = random.Random(0)
    points = [*range(0x3200), *range(0x3200, 0xD7FF, 5), *range(0xA640, 0xABFF), *range(0xE000, 0x110000, 61)]
    rng.shuffle(points)
    for some in (points[i : i + 200] for i in range(0, len(points), 200)):
        text = "".join(f"a{c}b {c}1 {c}{c}A{c}.{c}\n中{c}中 x'{c} Y'{c}z  {c}" for c in map(chr, some))
        assert pretokens._split(text) == [word for word, _ in exact.pre_tokenize_str(text)]
    for text in map(chr, range(128)):
        text = f"a{text}b {text}1 {text}{text}A{text}.{text}\nQ{text} x'{text} Y'{text}z  {text}"
        assert pretokens._split(text) == [word for word, _ in exact.pre_tokenize_str(text)]

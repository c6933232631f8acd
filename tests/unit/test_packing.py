"""Packing loses nothing, overlaps nothing and wastes little; the order of samples is a permutation in every epoch."""

from __future__ import annotations

import numpy as np
import pytest

from zenspeed.data.examples import EpochOrder, Ragged
from zenspeed.data.packing import PADDING, document_numbers, fill, pack, pack_in_one, pad
from zenspeed.errors import InputError
from zenspeed.tasks.encoding import encode_pairs, encode_texts, windows
from zenspeed.text.tokenizer import Tokenizer


@pytest.mark.parametrize("seed", range(5))
def test_every_text_has_its_own_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, size=60)
    texts = [rng.integers(10, 1000, size=n) for n in lengths]
    for layout in (pack(lengths, 256), pack_in_one(lengths), pad(lengths)):
        documents = document_numbers(layout, lengths).numpy()
        tokens = fill(layout, texts, 0).numpy()
        for number, text in enumerate(texts):
            assert np.array_equal(tokens[documents == number], text)
        assert (documents == PADDING).sum() == documents.size - lengths.sum()
    packed = pack(lengths, 256)
    assert packed.num_rows * packed.width < 1.15 * lengths.sum() + packed.width
    assert layout.num_rows == 60
    assert pack_in_one(lengths).width - lengths.sum() < 8


def test_one_short_text_needs_no_wide_row() -> None:
    assert pack([5], 512).width == 8
    assert pack([500], 512).width == 504
    assert pack([509], 509).width == 509


@pytest.mark.parametrize("bucketed", [False, True])
def test_each_epoch_is_a_permutation_whatever_the_steps(bucketed: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, size=103)
    order = EpochOrder(1, lengths, 8, bucketed=bucketed)
    whole = order.take(0, 206)
    assert sorted(whole[:103]) == sorted(whole[103:]) == list(range(103))
    assert list(whole[:103]) != list(whole[103:])
    assert np.array_equal(np.concatenate([order.take(i, 7) for i in range(0, 203, 7)]), whole[:203])
    spread = [np.ptp(lengths[whole[i : i + 8]]) for i in range(0, 96, 8)]
    assert (np.mean(spread) < 10) == bucketed


def test_a_curriculum_begins_with_the_easiest() -> None:
    difficulty = np.random.default_rng(0).random(40)
    order = EpochOrder(1, np.ones(40, int), 4, difficulty=difficulty)
    assert (np.diff(difficulty[order.take(0, 40)]) >= 0).all()
    assert (np.diff(difficulty[order.take(40, 40)]) < 0).any()


def test_ragged() -> None:
    ragged = Ragged([np.arange(3), np.arange(0), np.arange(5)])
    assert len(ragged) == 3
    assert [list(ragged[i]) for i in range(3)] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]


def test_windows_cover_the_text_and_overlap() -> None:
    parts = windows(np.arange(25), 10, 4)
    assert [list(p[[0, -1]]) for p in parts] == [[0, 9], [6, 15], [12, 21], [15, 24]]
    assert [len(p) for p in windows(np.arange(25), 10, None)] == [10]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["a small text about packing", "and another one with other words"] * 5
    return Tokenizer.train("wordpiece", texts, 200, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[MASK]"])


def test_special_tokens_stand_around_every_window(tokenizer: Tokenizer) -> None:
    text = "a small text about packing and another one"
    encoded = encode_texts(tokenizer, ["a small text", text], 8, 2)
    assert all(t[0] == tokenizer.cls and t[-1] == tokenizer.sep and len(t) <= 8 for t in encoded.tokens)
    assert encoded.owner[0] == 0 and set(encoded.owner[1:]) == {1} and encoded.cut == 0
    assert encode_texts(tokenizer, [text], 8, None).cut == 1
    with pytest.raises(InputError, match=r"task.stride: 6 .* less than 6"):
        encode_texts(tokenizer, [text], 8, 6)


def test_of_a_long_pair_the_longer_text_is_cut(tokenizer: Tokenizer) -> None:
    long = "packing " * 30
    encoded = encode_pairs(tokenizer, ["a small", long], [long, "a small"], 16)
    for tokens, types in zip(encoded.tokens, encoded.types, strict=True):
        assert len(tokens) == len(types) == 16
        assert list(tokens).count(tokenizer.sep) == 2
    assert (encoded.types[0] == 0).sum() < (encoded.types[1] == 0).sum()
    assert encoded.cut == 2

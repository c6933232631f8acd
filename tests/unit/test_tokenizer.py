"""Tokenizers: any text comes back, documents cannot forge the special token, and what is saved is what Hugging Face loads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

from zenspeed.config import InputError
from zenspeed.text import tokenizer as module
from zenspeed.text.tokenizer import END_OF_TEXT, Tokenizer

ENGLISH = "The quick brown fox jumps over the lazy dog; it doesn't care.\n\n    def f(x):\n        return x + 12345\n"
CHINESE = "机器学习是人工智能的一个分支。我们学习机器学习，也学习深度学习；在2024年，模型model越来越大。\n"
HARD = [
    "",
    " ",
    "\n",
    "\r\n\r\n x \t\u3000",
    ENGLISH,
    CHINESE,
    "日本語のテキスト한국어 नमस्ते สวัสดี العربية",
    "👩‍👩‍👧‍👦🎉🏳️‍🌈 e\u0301\u200b\ufeff\x00\x7f\U0010ffff",
    "�",
]


def corpus() -> list[str]:
    rng = random.Random(0)
    words = ["learning", "machine", "model", "data", "the", "of", "training", "don't", "x1"]
    han = ["机器", "学习", "模型", "数据", "训练", "的", "，", "。"]
    english = [" ".join(rng.choices(words, k=60)) + ".\n" for _ in range(40)]
    chinese = ["".join(rng.choices(han, k=60)) + "\n" for _ in range(40)]
    return [ENGLISH, CHINESE, *english, *chinese]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe(corpus(), 320)


@pytest.fixture(scope="module")
def char() -> Tokenizer:
    return Tokenizer.train_char(corpus())


def random_texts(count: int) -> list[str]:
    rng = random.Random(1)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000), (0x4E00, 0x9FFF), (9, 33)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(80))) for _ in range(count)]


@pytest.mark.parametrize("text", HARD)
def test_bpe_gives_any_text_back(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


def test_bpe_gives_random_unicode_back(bpe: Tokenizer) -> None:
    texts = random_texts(2000)
    encoded = bpe.encode_batch(texts)
    assert [bpe.decode(ids) for ids in encoded] == texts
    assert all(ids.dtype == np.uint32 and (ids != bpe.end_of_text).all() for ids in encoded)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_special_token_in_a_text_is_plain_text(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    for made in (tokenizer, Tokenizer.load(tmp_path)):
        ids = made.encode(f"one{END_OF_TEXT}two")
        assert made.end_of_text not in ids
        assert len(ids) > 8  # the thirteen characters of the token are there
        if kind == "bpe":
            assert made.decode(ids) == f"one{END_OF_TEXT}two"


def test_training_is_deterministic_across_processes(bpe: Tokenizer) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom test_tokenizer import *\n"
        "print(Tokenizer.train_bpe(corpus(), 320).fingerprint)"
    )
    for seed, parallel in (("1", "false"), ("2", "true")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel}
        command = [sys.executable, "-c", program, str(Path(__file__).parent)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == bpe.fingerprint


def test_fingerprint_tells_tokenizers_apart(bpe: Tokenizer, char: Tokenizer) -> None:
    assert len({bpe.fingerprint, char.fingerprint, Tokenizer.train_bpe(corpus(), 321).fingerprint}) == 3


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_transformers_loads_what_is_saved(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.fingerprint == tokenizer.fingerprint
    assert (ours.vocab_size, ours.end_of_text, ours.unknown) == (len(theirs), theirs.eos_token_id, theirs.unk_token_id)
    for text in [*HARD, *corpus(), *random_texts(100), f"a{END_OF_TEXT}b"]:
        ids = tokenizer.encode(text)
        assert ours.encode(text) == ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_vocabulary_size_is_exactly_what_was_asked(bpe: Tokenizer) -> None:
    assert bpe.vocab_size == 320
    assert bpe.unknown is None


def test_more_tokens_than_the_text_makes_is_an_error_whose_fix_works() -> None:
    with pytest.raises(InputError, match=r"5000 tokens asked.*only makes \d+.*--set tokenizer.vocab_size=") as caught:
        Tokenizer.train_bpe([ENGLISH, ENGLISH], 5000)
    possible = int(str(caught.value).split("vocab_size=")[1].split()[0])
    assert Tokenizer.train_bpe([ENGLISH, ENGLISH], possible).vocab_size == possible
    assert Tokenizer.train("bpe", [ENGLISH, ENGLISH], 5000, or_fewer=True).vocab_size == possible


def test_chinese_words_become_tokens(bpe: Tokenizer) -> None:
    """Without spaces the words must be found inside runs of Han characters, and no token mixes them with anything else."""
    assert len(bpe.encode("机器学习")) <= 2
    vocabulary = [bpe.decode([i]) for i in range(bpe.vocab_size)]
    han = [t for t in vocabulary if any("\u4e00" <= c <= "\u9fff" for c in t)]
    assert {"机器", "学习", "模型"} <= set(han)
    assert all("\u4e00" <= c <= "\u9fff" or c == "\ufffd" for t in han for c in t)


def test_text_without_any_mark_is_learned_in_time() -> None:
    """Words are never cut in Chinese or Thai without marks: the library alone would need minutes for this one."""
    rng = random.Random(3)
    text = "".join(rng.choices(["机器", "学习", "模型", "数据", "的", *map(chr, range(0x4E00, 0x5200))], k=100_000))
    began = time.process_time()
    tokenizer = Tokenizer.train_bpe([text], 2000)
    assert time.process_time() - began < 10
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_long_text_is_encoded_in_pieces_without_a_trace(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    parts = [
        "\n",
        "\n\n",
        " \n",
        "word",
        "中文",
        "  ",
        "1",
        ".",
        "...\n",
        "\r\n",
        "'s",
        "\u3000",
        "é",
        " the",
        "model",
        "机器学习",
    ]
    texts = ["".join(rng.choices(parts, k=400)) for _ in range(50)]
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 10**9)
    whole = [bpe.encode(text) for text in texts]
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 5)
    assert sum(len(list(module.pieces(text, 5))) for text in texts) > 1000
    assert [bpe.encode(text) for text in texts] == whole


def test_characters_and_the_unknown(char: Tokenizer) -> None:
    text = "机器 the model.\n"
    ids = char.encode(text)
    assert len(ids) == len(text)
    assert char.decode(ids) == text
    assert char.vocab_size == len(set("".join(corpus()))) + 2
    assert char.unknown is not None
    assert char.encode("a☃\U0001f389b")[1:3] == [char.unknown] * 2
    assert char.decode(char.encode("a☃b")) == "a�b"


def test_lone_surrogates_do_not_stop_encoding(bpe: Tokenizer, char: Tokenizer) -> None:
    assert bpe.decode(bpe.encode("a\ud83d b")) == "a� b"
    assert char.encode("a\ud83d")[1] == char.unknown
    assert Tokenizer.train_char(["a\ud83d"]).vocab_size == 3


# ---- streams


def test_stream_gives_whole_characters_only(bpe: Tokenizer) -> None:
    stream = bpe.stream()
    parts = [stream.push(i) for i in bpe.encode("héllo 中☃🎉!")]
    assert "" in parts  # something had to be held back
    assert "".join(parts) + stream.flush() == "héllo 中☃🎉!"
    assert not any("�" in part for part in parts)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_stream_of_any_tokens_equals_decode(kind: str, request: pytest.FixtureRequest) -> None:
    """An untrained model says anything: broken UTF-8, special tokens, unknowns."""
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, 40).tolist()
        stream = tokenizer.stream()
        assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


def test_flush_gives_up_on_half_a_character(bpe: Tokenizer) -> None:
    stream = bpe.stream()
    assert stream.push(bpe.encode("☃")[0]) == ""
    assert stream.flush() == "�"


# ---- folders of others


def foreign_tokenizer(folder: Path, settings: dict[str, object] | None) -> Path:
    """One as others make them: meta spaces, truncation and padding on, a token added in front, gaps in the numbers."""
    words = ["<unk>", "</s>", "<s>", "▁the", "▁model", "▁", "t", "h", "e", "m", "o", "d", "l"]
    vocabulary = {word: n for n, word in enumerate(words)} | {"▁far": 40}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<unk>", "</s>", "<s>"])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    inner.enable_truncation(3)
    inner.enable_padding()
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("settings", [{"eos_token": "</s>"}, {"eos_token": {"content": "</s>"}}, {}, None])
def test_foreign_folder_is_loaded_without_its_habits(settings: dict[str, object] | None, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign_tokenizer(tmp_path, settings))
    assert tokenizer.end_of_text == 1
    assert tokenizer.vocab_size == 41
    ids, other = tokenizer.encode_batch(["the model the model", "the"])
    assert len(ids) > 3, "truncated"
    assert len(other) < len(ids), "padded"
    assert 2 not in ids.tolist(), "a token was added in front"
    assert tokenizer.decode(ids) == "the model the model"
    stream = tokenizer.stream()
    assert "".join(stream.push(int(i)) for i in ids) + stream.flush() == "the model the model"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "holds no tokenizer.json"),
        ({"tokenizer.json": "{"}, r"tokenizer.json: not a tokenizer"),
        ({"tokenizer_config.json": "{\n,"}, r"tokenizer_config.json:2: not JSON"),
        ({"tokenizer_config.json": '{"eos_token": "<end>"}'}, "eos_token '<end>' is not in the vocabulary"),
    ],
)
def test_bad_folder_is_a_one_line_error(files: dict[str, str] | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    if files:
        foreign_tokenizer(folder, None)
    elif files is not None:
        folder.mkdir()
    for name, content in (files or {}).items():
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)

"""Kinds, layouts and the fast encoder: the tokens of Hugging Face's library on hard text too; roles, offsets, coverage."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import Regex, models, pre_tokenizers, trainers

from tests.unit.test_tokenizer import CHINESE, ENGLISH, HARD, corpus, random_texts
from zenspeed.config import InputError
from zenspeed.text import tokenizer as module
from zenspeed.text.coverage import check_unknown, measure_by_script
from zenspeed.text.fast import LONG_S, PROBE, open_fast
from zenspeed.text.splits import RANK_FILE_SPLITS, byte_alphabet
from zenspeed.text.tokenizer import Tokenizer
from zenspeed.text.words import segment

KINDS = ("bpe", "wordpiece", "word", "char")


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, Tokenizer.train(request.param, corpus(), special_tokens=["<user>", "[MASK]"])


def mixed_texts(count: int) -> list[str]:
    """Texts from the characters on which splits are decided."""
    rng = random.Random(2)
    atoms = [
        "'s",
        "'LL",
        "'",
        " ",
        "  ",
        "\n",
        "\r",
        "\t",
        "a",
        "B",
        "É",
        "9",
        "中",
        "々",
        "〇",
        "ー",
        "\x00",
        "!",
        "/",
        "\u3000",
    ]
    atoms += ["\u200d", "e\u0301", "न", "\u093f", "\u212a", LONG_S, "'" + LONG_S, "🎉", "<|endoftext|>", "ǅ", "ʰ"]
    return ["".join(rng.choices(atoms, k=rng.randrange(40))) for _ in range(count)]


def hugging_face(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    tokenizer.save(folder)
    loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def test_fast_encoder_gives_the_library_s_tokens(tmp_path: Path) -> None:
    # Merges that reach over "'ſ", on which the two split differently.
    tokenizer = Tokenizer.train_bpe([*corpus(), *[f"x'{LONG_S}"] * 3000], 320)
    assert tokenizer._fast is not None
    assert tokenizer._fast.encode([f"x'{LONG_S}"])[0].tolist() != tokenizer.encode(f"x'{LONG_S}")
    texts = [f"x'{LONG_S}", *HARD, *PROBE, *random_texts(3000), *mixed_texts(6000), ENGLISH * 300, CHINESE * 300]
    expected = [e.ids for e in hugging_face(tokenizer, tmp_path).encode_batch(texts, add_special_tokens=False)]
    given = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert [t for t, a, b in zip(texts, given, expected, strict=True) if a != b] == []


def test_fast_encoder_is_not_taken_where_it_would_differ() -> None:
    """A split of our own, and a normalizer: not of the makes that were compared."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[[\p{L}]&&[^\p{Han}]]+|\p{Han}"), behavior="isolated")
    inner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    assert open_fast(inner) is None
    lower = Tokenizer.train_bpe(corpus(), 320)._inner
    lower.normalizer = tokenizers.normalizers.Lowercase()
    assert open_fast(lower) is None


def test_saved_tokenizer_is_hugging_face_s(trained: tuple[str, Tokenizer], tmp_path: Path) -> None:
    kind, tokenizer = trained
    loaded = hugging_face(tokenizer, tmp_path)
    for text in [*HARD, *random_texts(200), *mixed_texts(200)]:
        given = loaded.encode(segment(text) if kind == "word" else text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == given
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(CHINESE) == tokenizer.encode(CHINESE)


def test_roles(trained: tuple[str, Tokenizer], tmp_path: Path) -> None:
    kind, tokenizer = trained
    mask, user = tokenizer.number("[MASK]"), tokenizer.number("<user>")
    assert mask is not None and user is not None
    assert tokenizer.mask == mask and tokenizer.eos == tokenizer.end_of_text and tokenizer.unk == tokenizer.unknown
    assert user not in tokenizer.encode("a <user> b [MASK]") and mask not in tokenizer.encode("a [MASK]")
    if kind in ("word", "wordpiece"):
        tokenizer.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert [tokenizer.cls, tokenizer.sep, tokenizer.pad, tokenizer.unk] == [
            theirs.cls_token_id,
            theirs.sep_token_id,
            theirs.pad_token_id,
            theirs.unk_token_id,
        ]
    else:
        assert tokenizer.cls is tokenizer.sep is tokenizer.pad is None


def test_offsets_point_at_the_text(trained: tuple[str, Tokenizer]) -> None:
    kind, tokenizer = trained
    for text in [ENGLISH, CHINESE, "深度学习model\u200b训练 naïve", "", "🎉 x"]:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text) and offsets.shape == (len(ids), 2)
        covered = {i for a, b in offsets for i in range(a, b)}
        assert {i for i, c in enumerate(text) if not c.isspace() and c != "\u200b"} <= covered
        if kind == "word":
            known = [(text[a:b].lower(), tokenizer._inner.id_to_token(i)) for i, (a, b) in zip(ids, offsets, strict=True)]
            assert [pair for pair in known if pair[0] != pair[1] and pair[1] != "[UNK]"] == []


def test_chinese_is_cut_into_words() -> None:
    tokenizer = Tokenizer.train("word", [CHINESE, ENGLISH] * 3)
    assert tokenizer.number("人工智能") is not None and tokenizer.number("doesn't") is not None
    assert tokenizer.encode("人工智能是分支") == [tokenizer.number(w) for w in ("人工智能", "是", "分支")]


def test_gpt2_layout_gives_the_same_tokens(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    inner.train_from_iterator(corpus(), trainer)
    inner.model.save(str(tmp_path))
    loaded = Tokenizer.load(tmp_path)
    for text in [*HARD, *random_texts(100)]:
        assert loaded.encode(text) == inner.encode(text, add_special_tokens=False).ids
        assert loaded.decode(loaded.encode(text)) == text


def test_bert_vocabulary_gives_transformers_tokens(tmp_path: Path) -> None:
    names = Tokenizer.train("wordpiece", corpus())._inner.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(names, key=names.__getitem__)) + "\n", encoding="utf-8")
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in [ENGLISH, CHINESE, "Naïve CAFÉ, 机器learning"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.cls, ours.sep, ours.mask, ours.eos) == (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
        ours.sep,
    )


def test_rank_file_gives_the_same_tokens(tmp_path: Path) -> None:
    """Ranks as tiktoken writes them hold no merges; they are found again."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = module.split_to_bytes(RANK_FILE_SPLITS["qwen"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet))
    to_byte = byte_alphabet()
    lines = [f"{base64.b64encode(bytes(to_byte[c] for c in name)).decode()} {i}" for name, i in inner.get_vocab().items()]
    path = tmp_path / "qwen.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    for place in (path, tmp_path):
        loaded = Tokenizer.load(place)
        assert [loaded.encode(t) for t in HARD] == [inner.encode(t).ids for t in HARD]
    unnamed = tmp_path / "mine.tiktoken"
    path.rename(unnamed)
    with pytest.raises(InputError, match=r"mine\.tiktoken: .* how text is split"):
        Tokenizer.load(unnamed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qwen.tiktoken", "not base64!", r"qwen\.tiktoken:1: not a token"),
        ("merges.txt", "#version: 0.2\na b c\n", r"merges\.txt: merge 1 is not two tokens"),
        ("merges.txt", "#version: 0.2\nx y\n", r"merges\.txt: does not fit its vocabulary"),
    ],
)
def test_broken_layouts_are_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    if name == "merges.txt":
        (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2}))
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


def test_a_language_the_vocabulary_lacks_is_refused() -> None:
    english = Tokenizer.train("wordpiece", [ENGLISH] * 3)
    found = measure_by_script(english, [CHINESE, ENGLISH])
    assert found["Chinese"].unknown_rate == 1 and 0 < found["all"].unknown_rate < 1
    chinese = found["Chinese"]
    with pytest.raises(InputError, match=r"rows\.csv: the tokenizer does not know 100\.0% of it"):
        check_unknown(chinese.unknown, chinese.tokens, 0.1, "rows.csv")
    check_unknown(1, 10, 0.1, "rows.csv")
    whole = measure_by_script(Tokenizer.train_bpe(corpus(), 320), [CHINESE])["Chinese"]
    assert whole.unknown == 0 and 0 < whole.tokens_per_character < 3
    assert np.isclose(whole.tokens_per_character, whole.tokens / sum("\u4e00" <= c <= "\u9fff" for c in CHINESE))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    """On every rank, and when a run is resumed. A trainer that follows a hash table gives another one each time."""
    texts = [*corpus(), ENGLISH, CHINESE]
    assert len({Tokenizer.train(kind, texts, None if kind == "char" else 500).fingerprint for _ in range(3)}) == 1


def test_wordpiece_has_no_token_that_cannot_occur() -> None:
    """A Chinese character is a word by itself and never the end of one."""
    tokenizer = Tokenizer.train("wordpiece", [ENGLISH, CHINESE], 500)
    names = tokenizer._inner.get_vocab()
    assert "##e" in names and not any("\u4e00" <= name[-1] <= "\u9fff" and len(name) > 1 for name in names)
    assert len(tokenizer.encode("##e")) == 3  # no special token any more

"""Text to token numbers and back, over Hugging Face `tokenizers`.

Five kinds behind one class:

    bpe        byte-level BPE (Sennrich et al. 1508.07909 on bytes) trained on the data: any Unicode text comes back exactly
    wordpiece  pieces of words in lower case, as BERT has them (words.py)
    word       whole words in lower case, Chinese cut into words by jieba (words.py)
    char       one token a character of the training text; any other character becomes `unknown`
    folder     whatever a folder or file in a known layout holds, with its own special tokens (layouts.py)

The special token `<|endoftext|>` is only ever put between documents by us: text that contains these letters is encoded as
plain text, so no document can forge the end of another.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models

from zenspeed.config import InputError, write_atomically
from zenspeed.text.bpe import train_bpe
from zenspeed.text.fast import LONG_S, FastEncoder, open_fast
from zenspeed.text.layouts import read_layout
from zenspeed.text.normalize import replace_surrogates
from zenspeed.text.pretokens import pieces
from zenspeed.text.splits import END_OF_TEXT, SPLIT, byte_alphabet, split_to_bytes, state
from zenspeed.text.words import BORDER, segment, train_wordpiece, train_words
from zenspeed.text.words import settings as word_settings

UNKNOWN = "\N{REPLACEMENT CHARACTER}"

_PIECE_CHARACTERS = 2000  # the library takes 2.2 times as long for pieces of 64 k

_FAST_FROM_CHARACTERS = 20_000  # below, opening the fast encoder takes longer than it saves

DEFAULT_VOCAB_SIZE = 4096
"""Tokens of a trained vocabulary when none are asked for; a small text makes fewer."""

_ROLE_NAMES = {
    "bos": ("<s>", "<bos>", "[BOS]"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "unk": ("[UNK]", "<unk>"),
}
_COMMON_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer:
    """Encodes text as token numbers in [0, vocab_size) and decodes them.

    Make one with `train` or `load`; `save` writes a folder that `transformers.AutoTokenizer` loads.
    """

    end_of_text: int
    """Number of the token that stands before every document and after the last."""
    unknown: int | None
    """Number of the token for what the vocabulary lacks; None when it lacks nothing (BPE)."""

    def __init__(self, inner: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
        """`settings` is the content of tokenizer_config.json; its eos_token must be in the vocabulary."""
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self._inner = inner
        self._settings = settings
        end_of_text = inner.token_to_id(_token_name(settings["eos_token"]))
        assert end_of_text is not None
        self.end_of_text = end_of_text
        self.unknown = self._role("unk")
        self._segments = settings.get("word_segmentation") == "jieba"
        self._is_char = _is_char(inner) and self.unknown is not None
        self._may_cut = self._is_char or state(inner.pre_tokenizer) == state(split_to_bytes(SPLIT))

    @classmethod
    def train(
        cls,
        kind: str,
        texts: Iterable[str],
        vocab_size: int | None = None,
        *,
        or_fewer: bool = False,
        special_tokens: Sequence[str] = (),
    ) -> Tokenizer:
        """A tokenizer of `kind` (bpe, wordpiece, word, char) from `texts`, which are gone through once.

        Args:
            vocab_size: null takes DEFAULT_VOCAB_SIZE, or as many as the texts hold; char takes every character.
            or_fewer: texts that hold fewer tokens (bpe) make fewer.
            special_tokens: put in front of the vocabulary. A usual name ([CLS], [SEP], [PAD], [MASK], …) gives that role.

        Raises:
            InputError: the texts do not hold that many tokens (bpe).
        """
        if kind == "char":
            return cls.train_char(texts, special_tokens)
        size = vocab_size or DEFAULT_VOCAB_SIZE
        if kind == "bpe":
            return cls.train_bpe(texts, size, or_fewer=or_fewer or vocab_size is None, special_tokens=special_tokens)
        learn = {"wordpiece": train_wordpiece, "word": train_words}[kind]
        inner = learn(map(replace_surrogates, texts), size, special_tokens)
        return cls(inner, word_settings(segments=kind == "word"))

    @classmethod
    def train_bpe(
        cls, texts: Iterable[str], vocab_size: int, *, or_fewer: bool = False, special_tokens: Sequence[str] = ()
    ) -> Tokenizer:
        """Byte-level BPE with exactly `vocab_size` tokens: special ones, 256 bytes, and merges seen at least twice.

        `or_fewer` takes as many as the texts hold. The same texts in the same order always give the same tokenizer.

        Raises:
            InputError: the texts do not hold that many merges.
        """
        inner = train_bpe(texts, vocab_size, _distinct([END_OF_TEXT, *special_tokens]))
        possible = inner.get_vocab_size()
        if possible < vocab_size and not or_fewer:
            raise InputError(
                f"tokenizer.vocab_size: {vocab_size} tokens asked, but the training text only makes {possible}; "
                f"give --set tokenizer.vocab_size={possible} or less, --set tokenizer.or_fewer=true, or more text"
            )
        return cls(inner, _settings())

    @classmethod
    def train_char(cls, texts: Iterable[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
        """One token for each character in `texts`, in the order of code points, after the special and the unknown token."""
        characters: set[str] = set()
        for text in texts:
            characters.update(replace_surrogates(text))
        vocabulary = {END_OF_TEXT: 0, UNKNOWN: 1}
        for token in _distinct([*special_tokens, *sorted(characters - {UNKNOWN})]):
            vocabulary.setdefault(token, len(vocabulary))
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
        inner.add_special_tokens(_distinct([END_OF_TEXT, *special_tokens]))
        inner.decoder = decoders.Fuse()
        return cls(inner, _settings(unk_token=UNKNOWN))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder in Hugging Face layout, or of a .tiktoken file (layouts.py says which are known).

        Raises:
            InputError: a file is missing or broken, or no end-of-text token can be found.
        """
        inner, settings = read_layout(folder)
        named = _token_name(settings.get("eos_token"))
        candidates = [named] if named else list(_COMMON_END_TOKENS)
        found = [name for name in candidates if inner.token_to_id(name) is not None]
        if not found:
            what = f"eos_token {named!r} is not in the vocabulary" if named else "no end-of-text token is named"
            raise InputError(f'{folder}: {what}; give one that is, as "eos_token" in tokenizer_config.json')
        settings["eos_token"] = found[0]
        return cls(inner, settings)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json into `folder`, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tokenizer.json", self._inner.to_str(pretty=True))
        settings = json.dumps(self._settings, indent=2, ensure_ascii=False, sort_keys=True)
        write_atomically(folder / "tokenizer_config.json", settings + "\n")

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token number, which is what an embedding needs; a loaded vocabulary may have gaps."""
        return max(self._inner.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides which numbers a text becomes; the same after `save` and `load`."""
        content = self._inner.to_str() + "\0" + str(self.end_of_text) + ("\0jieba" if self._segments else "")
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def cls(self) -> int | None:
        """Number of the token that begins a text to be classified."""
        return self._role("cls")

    @cached_property
    def sep(self) -> int | None:
        """Number of the token that ends each text of a pair."""
        return self._role("sep")

    @cached_property
    def pad(self) -> int | None:
        """Number of the token where there is no text."""
        return self._role("pad")

    @cached_property
    def mask(self) -> int | None:
        """Number of the token that hides another."""
        return self._role("mask")

    @cached_property
    def bos(self) -> int | None:
        """Number of the token that begins a text."""
        return self._role("bos")

    @property
    def eos(self) -> int:
        """Number of the token that ends a text: `end_of_text`."""
        return self.end_of_text

    @property
    def unk(self) -> int | None:
        """Number of the token for what the vocabulary lacks: `unknown`."""
        return self.unknown

    def name(self, number: int) -> str:
        """The token of that number as the vocabulary writes it; an empty string where there is none."""
        return self._inner.id_to_token(number) or ""

    def number(self, token: str) -> int | None:
        """The number of a token by its name, a special one of the user's for instance; None if there is none."""
        return self._inner.token_to_id(token)

    def special_tokens(self) -> dict[str, int]:
        """Special tokens by name, with their numbers."""
        return {token.content: i for i, token in self._inner.get_added_tokens_decoder().items() if token.special}

    def begin(self) -> list[int]:
        """What the tokenizer itself puts before a text, as its tokenizer.json says: beginning of sequence, or nothing."""
        return self._inner.encode("").ids[:1] if self._inner.post_processor is not None else []

    def token_names(self) -> dict[str, str]:
        """Names of the tokens of each role, as a chat template knows them: `bos_token`, `eos_token`, …"""
        names = {f"{role}_token": _token_name(self._settings.get(f"{role}_token")) for role in ("bos", "pad", "unk")}
        return names | {"eos_token": _token_name(self._settings["eos_token"])}

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, None if there is none."""
        found = self._settings.get("chat_template")
        if isinstance(found, list):  # several by name
            found = next((t.get("template") for t in found if t.get("name") == "default"), None)
        return found

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another template, which `save` writes where `transformers` reads it."""
        # `transformers` renders a conversation to text and encodes that: it must see special tokens in it.
        return Tokenizer(self._inner, {**self._settings, "chat_template": source, "split_special_tokens": False})

    def _role(self, role: str) -> int | None:
        named = _token_name(self._settings.get(f"{role}_token"))
        found = [self._inner.token_to_id(name) for name in ([named] if named else _ROLE_NAMES[role])]
        return next((i for i in found if i is not None), None)

    def encode(self, text: str) -> list[int]:
        """The token numbers of `text`; nothing is added in front or behind."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token numbers of each text, uint32, on all cores."""
        texts = [replace_surrogates(text) for text in texts]
        if self._is_char:
            return [self._encode_characters(text) for text in texts]
        if self._segments:
            texts = [segment(text) for text in texts]
        if sum(map(len, texts)) < _FAST_FROM_CHARACTERS or self._fast is None:
            return self._encode_exactly(texts)
        slow = [i for i, text in enumerate(texts) if LONG_S in text]
        out = self._fast.encode(["" if LONG_S in text else text for text in texts] if slow else texts)
        for i, ids in zip(slow, self._encode_exactly([texts[i] for i in slow]), strict=True):
            out[i] = ids
        return out

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """The token numbers of `text`, and where each stands in it: (tokens, 2) int64, first character and one past the last.

        A token that is a part of a character has that character's place; `text` has no lone surrogates (normalize.py).
        """
        if self._is_char:
            places = np.arange(len(text), dtype=np.int64)
            return self.encode(text), np.stack([places, places + 1], axis=1)
        cut = segment(text) if self._segments else text
        encoded = self._inner.encode(cut, add_special_tokens=False)
        offsets = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)
        if cut != text:
            offsets -= _borders_before(text, cut)[offsets]
        return encoded.ids, offsets

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return open_fast(self._inner)

    def _encode_exactly(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts = [list(pieces(text, _PIECE_CHARACTERS)) if self._may_cut else [text] for text in texts]
        flat = [piece for group in parts for piece in group]
        encoded = iter(self._inner.encode_batch_fast(flat, add_special_tokens=False))
        return [np.concatenate([np.array(next(encoded).ids, dtype=np.uint32) for _ in group]) for group in parts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token numbers. Special tokens give no text; bytes that are not UTF-8 give U+FFFD."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream(self) -> StreamDecoder:
        """A decoder that takes one token at a time, for text that is shown while it is generated."""
        return StreamDecoder(self)

    def _encode_characters(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        table = self._character_table
        return table[np.minimum(points, len(table) - 1)]

    @cached_property
    def _character_table(self) -> np.ndarray:
        """Token number by code point; the last entry is for all code points beyond the table."""
        points = {ord(name): i for name, i in self._inner.get_vocab().items() if len(name) == 1}
        table = np.full(max(points) + 2, self.unknown, dtype=np.uint32)
        table[list(points)] = list(points.values())
        return table

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        """Bytes by token number, those of special tokens empty; None when tokens are not made of bytes."""
        if not self._is_char and not isinstance(self._inner.decoder, decoders.ByteLevel):
            return None
        to_byte = {} if self._is_char else byte_alphabet()
        out = [b""] * self.vocab_size
        special = {i for i, token in self._inner.get_added_tokens_decoder().items() if token.special}
        for name, i in self._inner.get_vocab().items():
            if i not in special:
                plain = all(character in to_byte for character in name)
                out[i] = bytes(to_byte[character] for character in name) if plain else name.encode()
        return out


class StreamDecoder:
    """Decodes tokens as they come: the parts joined are the decoded whole, and no part ends inside a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer._token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._inner = tokenizer._inner
        self._stream = decoders.DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is only half there."""
        if self._bytes is not None:
            return self._utf8.decode(self._bytes[token])
        return self._stream.step(self._inner, token) or ""

    def flush(self) -> str:
        """What is left when no more tokens come: U+FFFD for a character that was never completed, or nothing."""
        return self._utf8.decode(b"", final=True)


def _is_char(inner: tokenizers.Tokenizer) -> bool:
    """Whether each character of a text becomes one token, looked up by itself."""
    if inner.normalizer or inner.pre_tokenizer or not isinstance(inner.decoder, decoders.Fuse):
        return False
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    return all(len(name) == 1 for name in inner.get_vocab() if name not in special)


def _borders_before(text: str, cut: str) -> np.ndarray:
    """How many borders `segment` put before each place of `cut`, (len(cut) + 1,) int64."""
    counts = np.zeros(len(cut) + 1, dtype=np.int64)
    place = 0
    for i, character in enumerate(cut):
        added = character == BORDER and (place >= len(text) or text[place] != BORDER)
        counts[i + 1] = counts[i] + added
        place += not added
    return counts


def _distinct(tokens: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(tokens))


def _settings(**more: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "split_special_tokens": True,  # transformers' name for: their letters in a text are plain text
        "clean_up_tokenization_spaces": False,
        **more,
    }


def _token_name(entry: Any) -> str:
    """Hugging Face writes a special token as its text or as a mapping with `content`."""
    return str(entry.get("content", "")) if isinstance(entry, dict) else entry or ""

"""Training of byte-level BPE: merges are those of Hugging Face `tokenizers`, found by gigabpe from words counted by us.

`gigabpe` learns the merges that `tokenizers` learns, ties and repeated tokens included, but knows two ways to split only. So it
is given words that are split already (pretokens.py), each byte a letter, and one space between words. The letters stand in the
order of the byte alphabet, so numbers, and with them ties, come out the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, trainers

from zenspeed.text.normalize import replace_surrogates
from zenspeed.text.pretokens import FIRST_LETTER, WORD_CHARACTERS, pieces, write_words
from zenspeed.text.splits import SPLIT, byte_alphabet, split_to_bytes

# Longest token in bytes. Keeps a phrase that a small corpus repeats (a licence line, "========") from becoming one token.
_MAX_TOKEN_BYTES = 24
_LEAST_COUNT = 2
_PIECE_CHARACTERS = 2000  # `tokenizers` works on pieces in parallel

_ALPHABET = sorted(byte_alphabet())
_TO_LETTERS = {ord(c): FIRST_LETTER + rank for rank, c in enumerate(_ALPHABET)}
_FROM_LETTERS = {letter: c for c, letter in _TO_LETTERS.items()}


def train_bpe(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> tokenizers.Tokenizer:
    """Up to `vocab_size` tokens: special ones, 256 bytes, and merges seen at least twice, the most frequent first."""
    try:
        import gigabpe
    except ImportError:
        return train_bpe_by_tokenizers(texts, vocab_size, special)
    in_letters = [token.translate(_TO_LETTERS) for token in special]
    if [token.translate(_FROM_LETTERS) for token in in_letters] != list(special):  # has letters of its own among ours
        return train_bpe_by_tokenizers(texts, vocab_size, special)
    with tempfile.TemporaryDirectory(prefix="zenspeed-words-") as folder:
        files = write_words(texts, Path(folder))
        alphabet = Path(folder) / "alphabet"
        alphabet.write_text(" ".join(map(chr, _FROM_LETTERS)), encoding="utf-8")
        vocabulary, merges = gigabpe.train_bpe(
            [str(path) for path in (alphabet, *files)], vocab_size, special_tokens=in_letters, min_frequency=_LEAST_COUNT,
            max_token_length=_MAX_TOKEN_BYTES, pretokenizer="whitespace",
        )  # fmt: skip
    numbers = {token.translate(_FROM_LETTERS): number for token, number in vocabulary.items()}
    pairs = [(a.translate(_FROM_LETTERS), b.translate(_FROM_LETTERS)) for a, b in merges]
    inner = tokenizers.Tokenizer(models.BPE(vocab=numbers, merges=pairs))
    inner.add_special_tokens(list(special))
    return _dressed(inner)


def train_bpe_by_tokenizers(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> tokenizers.Tokenizer:
    """The same by `tokenizers` alone."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = split_to_bytes(SPLIT, f"[\\s\\S]{{1,{WORD_CHARACTERS}}}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_LEAST_COUNT,
        show_progress=False,
        special_tokens=list(special),
        initial_alphabet=_ALPHABET,
        max_token_length=_MAX_TOKEN_BYTES,
    )
    parts = (piece for text in texts for piece in pieces(replace_surrogates(text), _PIECE_CHARACTERS))
    inner.train_from_iterator(parts, trainer)
    return _dressed(inner)


def _dressed(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    inner.pre_tokenizer = split_to_bytes(SPLIT)
    inner.decoder = decoders.ByteLevel()
    return inner

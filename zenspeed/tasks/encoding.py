"""Texts and pairs of texts as the sequences a model reads: special tokens around them, long ones cut or read in windows.

one text    [cls] text [sep]                 a tokenizer without cls and sep: end-of-text, text, end-of-text
a pair      [cls] first [sep] second [sep]   token types 0 … 0 1 … 1 where the model has two
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.text.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """Sequences, the text that each belongs to, and how many texts lost their end."""

    tokens: list[np.ndarray]
    types: list[np.ndarray]
    owner: np.ndarray
    cut: int


def special_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """What begins a sequence, and what ends each text in it."""
    end = tokenizer.end_of_text
    return (
        end if tokenizer.cls is None else tokenizer.cls,
        end if tokenizer.sep is None else tokenizer.sep,
    )


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], longest: int, stride: int | None) -> Encoded:
    """Each text as one sequence of up to `longest` tokens; a longer one is cut, or with `stride` read in windows."""
    return frame_texts(tokenizer, tokenizer.encode_batch(texts), longest, stride)


def frame_texts(tokenizer: Tokenizer, texts: Sequence[np.ndarray], longest: int, stride: int | None) -> Encoded:
    """The same of the tokens of each text, as `Tokenizer.encode_batch` gives them."""
    begin, end = special_tokens(tokenizer)
    room = longest - 2
    _check(room, stride)
    tokens, owner, cut = [], [], 0
    for index, text in enumerate(texts):
        parts = windows(text, room, stride)
        cut += len(text) > room and stride is None
        tokens += [np.concatenate([[begin], part, [end]]) for part in parts]
        owner += [index] * len(parts)
    return Encoded(tokens, [np.zeros(len(t), np.int32) for t in tokens], np.array(owner, np.int64), cut)


def encode_pairs(tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str], longest: int) -> Encoded:
    """Each pair as one sequence; of a pair that is too long, the longer text loses its end."""
    return frame_pairs(tokenizer, tokenizer.encode_batch(first), tokenizer.encode_batch(second), longest)


def frame_pairs(tokenizer: Tokenizer, first: Sequence[np.ndarray], second: Sequence[np.ndarray], longest: int) -> Encoded:
    """The same of the tokens of each text."""
    begin, end = special_tokens(tokenizer)
    room = longest - 3
    _check(room, None)
    tokens, types, cut = [], [], 0
    for a, b in zip(first, second, strict=True):
        keep_b = min(len(b), max(room // 2, room - len(a)))
        keep_a = min(len(a), room - keep_b)
        cut += len(a) + len(b) > room
        tokens.append(np.concatenate([[begin], a[:keep_a], [end], b[:keep_b], [end]]))
        types.append(np.repeat([0, 1], [keep_a + 2, keep_b + 1]))
    return Encoded(tokens, types, np.arange(len(tokens)), cut)


def windows(tokens: np.ndarray, longest: int, stride: int | None) -> list[np.ndarray]:
    """`tokens` if they fit `longest`; else their beginning, or, with `stride`, windows that overlap by so many tokens."""
    if len(tokens) <= longest:
        return [tokens]
    if stride is None:
        return [tokens[:longest]]
    return [tokens[s : s + longest] for s in window_starts(len(tokens), longest, stride)]


def window_starts(length: int, longest: int, stride: int) -> list[int]:
    """Where windows of `longest` that overlap by `stride` begin in a text of `length`; the last one ends with the text."""
    return [*range(0, length - longest, longest - stride), max(0, length - longest)]


def _check(room: int, stride: int | None) -> None:
    if room < 1:
        raise InputError("model.context: too small for a text and its special tokens; give at least 8")
    if stride is not None and stride >= room:
        raise InputError(
            f"task.stride: {stride} tokens of overlap in windows of {room} leave nothing new; give less than {room}"
        )

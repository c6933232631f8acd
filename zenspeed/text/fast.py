"""Byte-level BPE by fastokens, some forty times as fast as `tokenizers`, where it is installed and gives the same tokens.

The numbers must be those of `tokenizers`, so three things are asked: the tokenizer is of a make that was compared on real
and random text (no normalizer, one split, bytes); a probe of hard text comes out equal here and now; and a text that holds the
one character on which the two differ (ſ, which folds to the s of a contraction) is left to the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from zenspeed.text.splits import RANK_FILE_SPLITS, SPLIT, split_to_bytes, state

LONG_S = "\N{LATIN SMALL LETTER LONG S}"

PROBE = (
    "The brown fox doesn't care; it's 12345.678 — HTMLParser.parseURL(x)\n\n    def f(self):\r\n\treturn {'a': [1, 2]}  \n",
    "机器学习是人工智能的一个分支，model越来越大。々〇〻 日本語のテキスト・ー 한국어 नमस्ते สวัสดี العربية Ελληνικά",
    "👩‍👩‍👧‍👦🎉🏳️‍🌈 e\u0301\u200b\ufeff\x00\x7f\u3000\u00a0\u2028\U0010ffff\U00020000 <|endoftext|> 'LL 'Re K ½ ² Ⅷ ٣",
    " \t \n \r\n x  \n\n\ny   ",
    "",
)


class FastEncoder:
    """Encodes many texts at once; made by `open_fast`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token numbers of each text, uint32; special tokens in a text are plain text."""
        flat, ends = self._inner.encode_batch_flat(texts, False, True)
        ids, offsets = np.frombuffer(flat, np.uint32), np.frombuffer(ends, np.uint64).tolist()
        return [ids[a:b] for a, b in itertools.pairwise(offsets)]


def open_fast(inner: tokenizers.Tokenizer) -> FastEncoder | None:
    """The fast encoder of a tokenizer, or None where there is none or it would not give the same tokens."""
    if inner.normalizer is not None or not isinstance(inner.model, models.BPE) or not _is_known(inner.pre_tokenizer):
        return None
    try:
        from fastokens import Tokenizer as Fast
    except ImportError:
        return None
    try:
        fast = FastEncoder(Fast.from_json_str(inner.to_str()))
        given = fast.encode(PROBE)
    except Exception:  # a library in another language: whatever it cannot do, the other one can
        return None
    expected = [e.ids for e in inner.encode_batch_fast(list(PROBE), add_special_tokens=False)]
    return fast if [ids.tolist() for ids in given] == expected else None


def _is_known(part: Any) -> bool:
    known = [split_to_bytes(pattern) for pattern in {SPLIT, *RANK_FILE_SPLITS.values()}]
    known.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    return any(state(part) == state(other) for other in known)

"""How well a vocabulary holds a text: tokens a character and the share it does not know, for Chinese by itself as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zenspeed.errors import InputError
from zenspeed.text.splits import HAN_RUN
from zenspeed.text.tokenizer import Tokenizer


class Coverage(NamedTuple):
    """Counts over some texts."""

    characters: int
    tokens: int
    unknown: int
    """Tokens that stand for what the vocabulary lacks."""
    distinct: int
    """Different tokens that came up."""

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / max(self.characters, 1)

    @property
    def unknown_rate(self) -> float:
        """Share of tokens that are unknown, in [0, 1]."""
        return self.unknown / max(self.tokens, 1)


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> Coverage:
    """The coverage of `texts`."""
    characters = tokens = unknown = 0
    seen: set[int] = set()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        characters += len(text)
        tokens += len(ids)
        if tokenizer.unknown is not None:
            unknown += int((ids == tokenizer.unknown).sum())
        seen.update(ids.tolist())
    return Coverage(characters, tokens, unknown, len(seen))


def measure_by_script(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Coverage]:
    """The coverage of all, and of the runs of Han characters alone (`Chinese`) where there are any."""
    out = {"all": measure(tokenizer, texts)}
    chinese = [run for text in texts for run in HAN_RUN.findall(text)]
    return {**out, "Chinese": measure(tokenizer, chinese)} if chinese else out


def check_unknown(unknown: int, tokens: int, limit: float, where: str) -> None:
    """Refuses a text that the vocabulary cannot express.

    Raises:
        InputError: more than the share `limit` of its tokens is unknown.
    """
    if tokens and unknown / tokens > limit:
        raise InputError(
            f"{where}: the tokenizer does not know {unknown / tokens:.1%} of it ({unknown:,} of {tokens:,} tokens); use "
            f"tokenizer.kind: bpe, which knows every text, or train one on this text, or allow it by tokenizer.max_unknown"
        )

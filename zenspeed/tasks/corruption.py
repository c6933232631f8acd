"""Span corruption (Raffel et al. 2019, arXiv 1910.10683, section 3.1.4): what an encoder-decoder learns from plain text.

    text     Thank you for inviting me to your party last week
    source   Thank you <extra_id_0> me to your party <extra_id_1> week [end]
    target   [begin] <extra_id_0> for inviting <extra_id_1> last [end]

Of every text `task.mask` of the tokens are left out, in spans of `task.span` tokens on average, other ones in each epoch.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.examples import Ragged
from zenspeed.tasks.data import SENTINEL
from zenspeed.tasks.encoding import windows
from zenspeed.tasks.pairs import PairTask
from zenspeed.tasks.rows import Examples, column_of

EVALUATION_SEED = 0


class CorruptionTask(PairTask):
    """Documents in windows; the target is drawn from the number of the sample."""

    def prepare(self) -> None:
        super().prepare()
        numbers = (self.tokenizer.number(SENTINEL.format(i)) for i in itertools.count())
        self._sentinels = [number for number in itertools.takewhile(lambda number: number is not None, numbers) if number]
        if not self._sentinels:
            raise InputError(
                f"tokenizer: has no {SENTINEL.format(0)}, which span_corruption needs; let one be trained "
                "(tokenizer.kind: bpe), or train yours with it among tokenizer.special_tokens"
            )

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        texts = column_of(rows, self.recipe.task.text, "task.text", split)
        tokens, owner = [], []
        for index, text in enumerate(self.tokenizer.encode_batch(texts)):
            parts = [part for part in windows(text, self.longest - 1, self.recipe.task.stride or 0) if len(part) > 1]
            tokens += parts
            owner += [index] * len(parts)
        if not tokens:
            raise InputError(f"task.text: no text of {split} has two tokens, so there is nothing to leave out")
        owners = np.array(owner, np.int64)
        return Examples(Ragged(tokens), owners, owners, rows)

    def pair_of(self, examples: Examples, index: int, sample: int | None) -> tuple[np.ndarray, np.ndarray]:
        key = [self.recipe.run.seed, sample] if sample is not None else [EVALUATION_SEED, index]
        task, text = self.recipe.task, examples.tokens[index]
        hidden = hidden_spans(len(text), task.mask, task.span, len(self._sentinels), np.random.default_rng(key))
        source, target, done = [], [np.array([self.begin])], 0
        for (start, stop), sentinel in zip(hidden, self._sentinels, strict=False):
            source += [text[done:start], [sentinel]]
            target += [np.array([sentinel]), text[start:stop]]
            done = stop
        return np.concatenate([*source, text[done:], [self.end]]), np.concatenate([*target, [self.end]])


def hidden_spans(length: int, share: float, mean: float, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(start, stop) of spans of `length` ≥ 2 tokens that are left out: `share` of them, no two next to each other.

    As many spans as make `mean` tokens each, but at least one and at most `most`. How long they are and where they stand is
    drawn evenly among all ways to do it (T5 itself always leaves out the end of a text).
    """
    hidden = min(length - 1, max(1, round(share * length)))
    count = min(max(1, round(hidden / mean)), hidden, length - hidden, most)
    sizes = _cut(hidden, count, rng)
    gaps = _cut(length - hidden + 2, count + 1, rng)  # before the first span, between spans, and behind the last
    starts = np.cumsum(gaps[:-1]) - 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [(int(a), int(a + n)) for a, n in zip(starts, sizes, strict=True)]


def _cut(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`parts` numbers of at least 1 that add up to `total`."""
    borders = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, np.int64)
    return np.diff(np.concatenate([[0], borders, [total]])).astype(np.int64)

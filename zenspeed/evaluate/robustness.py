"""Texts as careless writers give them: typing errors, other case, full-width forms, other words for the same.

Every change is a function of the text and its place, so two models are given the same changed rows.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.errors import InputError
from zenspeed.evaluate.classify import wilson
from zenspeed.evaluate.measures import measures_of
from zenspeed.evaluate.paired import paired
from zenspeed.evaluate.predictions import Predictions

Change = Callable[[str, random.Random], str]
_LATIN = re.compile(r"[A-Za-z]+")
_TYPO_RATE = 0.1
_NEAR = {
    a: [row[j] for j in (i - 1, i + 1) if 0 <= j < len(row)]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, a in enumerate(row)
}
_FULL = {**{ord(c): ord(c) + 0xFEE0 for c in string.ascii_letters + string.digits + ",.!?:;()"}, ord(" "): 0x3000}
_HALF = {**{full: half for half, full in _FULL.items()}, ord("。"): ord("."), ord("、"): ord(",")}


def changes(names: Sequence[str], synonyms: Path | None = None) -> dict[str, Change]:
    """The changes of these names.

    Raises:
        InputError: an unknown name, or a file of synonyms that cannot be read.
    """
    known: dict[str, Change] = {
        "typos": typos,
        "lower": lambda text, rng: text.lower(),
        "upper": lambda text, rng: text.upper(),
        "full-width": lambda text, rng: text.translate(_FULL),
        "half-width": lambda text, rng: text.translate(_HALF),
        "synonyms": with_synonyms(read_synonyms(synonyms)),
    }
    for name in names:
        if name not in known and name != "all":
            raise InputError(f"--robust: {name!r} is not known; give all, or some of {', '.join(known)}")
    return known if "all" in names else {name: known[name] for name in names}


def typos(text: str, rng: random.Random) -> str:
    """One error in a tenth of the words: a letter left out, doubled, swapped with the next, or a neighbour's on the keyboard.

    Chinese characters have no keys next to them: one in ten is swapped with the next.
    """

    def wrong(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < 3 or rng.random() >= _TYPO_RATE:
            return word
        i = rng.randrange(len(word) - 1)
        near = rng.choice(_NEAR.get(word[i].lower(), [word[i]]))
        ways = (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + near + word[i + 1 :],
        )
        return rng.choice(ways)

    def swapped(match: re.Match[str]) -> str:
        pair = match.group()
        return pair[::-1] if rng.random() < _TYPO_RATE else pair

    return re.sub(r"[\u4e00-\u9fff]{2}", swapped, _LATIN.sub(wrong, text))


def read_synonyms(path: Path | None) -> dict[str, list[str]]:
    """Words and what may stand for them, from a file of groups: a line holds words of one meaning, apart by tabs or commas."""
    source = Path(__file__).with_name("synonyms.txt") if path is None else path
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as UTF-8 text: {error}") from None
    found: dict[str, list[str]] = {}
    for line in lines:
        group = [word.strip() for word in re.split(r"[\t,，]", line) if word.strip()]
        for word in group if not line.startswith("#") else ():
            found.setdefault(word.lower(), []).extend(other for other in group if other != word)
    return found


def with_synonyms(synonyms: Mapping[str, Sequence[str]]) -> Change:
    """Puts another word of the group in the place of each that is known."""
    chinese = sorted((w for w in synonyms if not w.isascii()), key=len, reverse=True)
    pattern = re.compile("|".join([r"[A-Za-z]+", *map(re.escape, chinese)]))

    def change(text: str, rng: random.Random) -> str:
        def other(match: re.Match[str]) -> str:
            word = match.group()
            choices = synonyms.get(word.lower())
            if not choices:
                return word
            chosen = rng.choice(choices)
            return chosen.capitalize() if word[0].isupper() else chosen

        return pattern.sub(other, text)

    return change


def changed_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], change: Change, first: int = 0
) -> list[dict[str, Any]]:
    """The rows with the texts of `columns` changed. first: number of the first row, from 0."""
    return [
        {**row, **{c: change(str(row[c]), random.Random(f"{i} {c}")) for c in columns if row.get(c) is not None}}
        for i, row in enumerate(rows, first)
    ]


def effect_of(name: str, before: Predictions, after: Predictions, texts_changed: int) -> dict[str, Any]:
    """What a change of the texts did: the main measure before and after, paired, and how many answers became others."""
    labels = None
    if before.kind == "labels":
        labels = sorted({name for p in (before, after) for name in p.labels.names})
    metric = next(iter(measures_of(before.take(np.arange(min(2, before.n))))))
    first, second = (measures_of(p, [metric], labels)[metric] for p in (before, after))
    e = paired(first, second)
    pairs = zip(before.rows, after.rows, strict=True)
    changed = sum(a["prediction"] != b["prediction"] for a, b in pairs)
    n = before.n
    return {
        "change": name,
        "n": n,
        "texts_changed": texts_changed,
        "metric": metric,
        "before": e.first,
        "after": e.second,
        "difference": e.difference,
        "low": e.low,
        "high": e.high,
        "p": e.p,
        "answers_changed": wilson(changed, n, "share of rows whose answer became another")._asdict(),
    }

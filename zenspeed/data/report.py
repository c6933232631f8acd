"""A labelled set of texts, looked at before a model is trained on it: one page that says what would go wrong.

    rows → chunk by chunk: lengths, tokens, hashes, sketches, labels, odd rows → Statistics → findings → page (report_page.py)

Of the texts themselves only a sample and some quotes are kept: about 200 bytes a row, whatever its length.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.duplicates import Leakage, Sketches, join, leakage, near_earlier, sketch, text_hash
from zenspeed.data.reading import no_column, value_of
from zenspeed.data.rows import ReadReport, RowOptions, read_rows
from zenspeed.text.coverage import Coverage, measure_by_script
from zenspeed.text.normalize import replace_surrogates
from zenspeed.text.tokenizer import Tokenizer

CANDIDATE_LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Sequence lengths, in tokens, of which the page says what they would cut."""
_SPECIAL_TOKENS = 2  # around a text
_ROWS_CUT = 0.01  # the suggested length cuts no more rows than this share
_CHUNK_ROWS = 10_000
_CHUNK_CHARACTERS = 8_000_000
_SAMPLE_ROWS = 1000
_SAMPLE_OF_RUN = 300
_TOKENIZER_CHARACTERS = 1_000_000
_QUOTES = 3
_LONG = 20  # times the median

# UTF-8 read as Latin-1 or cp1252, and Chinese in GBK read as UTF-8.
_MOJIBAKE = re.compile(
    r"Ã[\x80-\xbf©¨¡¢¤®±³¶¼]|â€[™œ\x9d“”¦˜]|Â[\xa0-\xbf]|ï»¿"
    r"|锟斤拷|烫烫烫|[äåæçèé][\x80-\xbf¸¹º»¼½¾¿][\x80-\xbf]"
)
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ODD: dict[str, Any] = {
    "NUL bytes": lambda text: "\0" in text,
    "other control characters": _CONTROL.search,
    "broken encoding (mojibake)": _MOJIBAKE.search,
    "characters lost in decoding (U+FFFD)": lambda text: "\N{REPLACEMENT CHARACTER}" in text,
    "markup": re.compile(r"</?(?:p|br|div|a|span|b|i|html|td|tr|li)\b[^>]*>|&(?:amp|lt|gt|quot|nbsp|#\d+);").search,
}


class Quotes:
    """How many rows have a property, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[int, str]] = []

    def add(self, row: int, text: str) -> None:
        self.count += 1
        if len(self.first) < _QUOTES:
            self.first.append((row, text[:80]))

    def as_dict(self) -> dict[str, object]:
        return {"rows": self.count, "first": [{"row": row, "text": text} for row, text in self.first]}


class Statistics(NamedTuple):
    """What one split is like. Arrays hold one value a row."""

    source: str
    characters: np.ndarray
    tokens: np.ndarray
    texts: np.ndarray
    """(rows,) uint64: hash of the text to the letter, without blank space around it."""
    labels: np.ndarray
    """(rows,) int32: place of the row's label in `label_names`; -1 for none."""
    label_names: list[str]
    sketches: Sketches
    near: np.ndarray
    """(rows,) int64: an earlier row that is nearly the same, or -1."""
    odd: dict[str, Quotes]
    sample: list[str]
    starts: list[str]
    """The first characters of each text (of the test set; empty for others)."""
    read: dict[str, Any]

    @property
    def blank(self) -> np.ndarray:
        return self.texts == np.uint64(text_hash(""))

    def counts(self) -> dict[str, int]:
        """Rows, and how many of those with text are different: as rows, as texts, as texts after normalisation."""
        full = ~self.blank
        texts = self.texts[full]
        pairs = np.stack([texts, self.labels[full].astype(np.uint64)], axis=1)
        return {
            "rows": len(self.texts),
            "rows with text": int(full.sum()),
            "different rows (text and label)": len(np.unique(pairs, axis=0)),
            "different texts": len(np.unique(texts)),
            "different texts after normalisation": len(np.unique(self.sketches.exact[full])),
            "near duplicates beyond these": int((self.near >= 0).sum()),
            "texts with several labels": len(self.conflicts()),
        }

    def conflicts(self) -> np.ndarray:
        """Rows (the first each) of texts that carry more than one label, int64."""
        known = np.flatnonzero((self.labels >= 0) & ~self.blank)
        order = known[np.lexsort((self.labels[known], self.texts[known]))]
        same_text = self.texts[order][1:] == self.texts[order][:-1]
        differ = same_text & (self.labels[order][1:] != self.labels[order][:-1])
        _, first = np.unique(self.texts[order][1:][differ], return_index=True)
        return order[1:][differ][first]


class Report(NamedTuple):
    """All that the page shows."""

    train: Statistics
    test: Statistics | None
    leakage: Leakage | None
    languages: dict[str, float]
    """Share of a sample of rows, by language code."""
    coverage: dict[str, Coverage]
    tokenizer: str
    suggested_length: int
    held_out: str = "test"
    """What the second set is."""
    sampled: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """Of each set that was not looked at as a whole: rows that were, and all."""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        splits = {"train": self.train} | ({self.held_out: self.test} if self.test else {})
        sampled = {name: {"rows": some, "of": every} for name, (some, every) in self.sampled.items()}
        return {
            **({"sampled": sampled} if sampled else {}),
            **{name: _split_dict(split) for name, split in splits.items()},
            "leakage": _leakage_dict(self.leakage) if self.leakage else None,
            "languages": self.languages,
            "tokenizer": self.tokenizer,
            "coverage": {
                name: {**c._asdict(), "tokens_per_character": c.tokens_per_character, "unknown_rate": c.unknown_rate}
                for name, c in self.coverage.items()
            },
            "suggested_length": self.suggested_length,
        }


def _leakage_dict(leak: Leakage) -> dict[str, Any]:
    return {**leak._asdict(), "share": leak.share, "examples": [e._asdict() for e in leak.examples]}


def _split_dict(s: Statistics) -> dict[str, Any]:
    return {
        "source": s.source,
        "counts": s.counts(),
        "labels": label_counts(s),
        "characters": quantiles(s.characters),
        "tokens": quantiles(s.tokens),
        "truncation": [t._asdict() for t in truncation(s.tokens)],
        "odd": {name: quotes.as_dict() for name, quotes in s.odd.items()},
        "read": s.read,
    }


def report(
    train: str, test: str | None, text: str, label: str | None, tokenizer: Path | None = None, options: RowOptions | None = None
) -> Report:
    """Reads both sets once and says what is in them.

    Args:
        train, test: anything `read_rows` takes.
        text, label: the columns; the default tokenizer is a byte-level BPE trained on the first million characters.

    Raises:
        InputError: a set cannot be read, or a column is missing.
    """
    options = options or RowOptions(on_bad_row="skip")
    loaded = Tokenizer.load(tokenizer) if tokenizer else _trained(train, text, options)
    first = statistics(train, text, label, loaded, options, keep_starts=False)
    second = statistics(test, text, label, loaded, options, keep_starts=True) if test else None
    leak = leakage(first.sketches, second.sketches, second.starts) if second else None
    made = f"byte-level BPE of {loaded.vocab_size:,} tokens, trained on the beginning of {train}"
    name = str(tokenizer) if tokenizer else made
    coverage = measure_by_script(loaded, first.sample)
    return Report(first, second, leak, languages(first.sample), coverage, name, suggest(first.tokens))


def report_of(
    splits: Mapping[str, tuple[Sequence[Mapping[str, object]], int]], text: str, label: str | None, tokenizer: Tokenizer
) -> Report:
    """The report of rows that are held: of `train` and the set that is held out, by name, each with the number of all its rows
    where these are a sample."""
    first, *second = [
        _statistics(rows, name, text, label, tokenizer, ReadReport(), keep_starts=name != "train")
        for name, (rows, _) in splits.items()
    ]
    leak = leakage(first.sketches, second[0].sketches, second[0].starts) if second else None
    sampled = {name: (len(rows), every) for name, (rows, every) in splits.items() if len(rows) < every}
    held_out, some = list(splits)[-1], first.sample[:_SAMPLE_OF_RUN]
    coverage = measure_by_script(tokenizer, some)
    return Report(
        first,
        second[0] if second else None,
        leak,
        languages(some),
        coverage,
        "the run's own tokenizer",
        suggest(first.tokens),
        held_out,
        sampled,
    )


def _trained(source: str, text: str, options: RowOptions) -> Tokenizer:
    kept, total = [], 0
    for row in read_rows(source, options):
        kept.append(_text(row, text, source, "--text"))
        total += len(kept[-1])
        if total > _TOKENIZER_CHARACTERS:
            break
    return Tokenizer.train("bpe", (t[:_TOKENIZER_CHARACTERS] for t in kept))


def statistics(
    source: str, text: str, label: str | None, tokenizer: Tokenizer, options: RowOptions, *, keep_starts: bool
) -> Statistics:
    """Goes through the rows of `source` once."""
    read = ReadReport()
    return _statistics(read_rows(source, options, read), source, text, label, tokenizer, read, keep_starts=keep_starts)


def _statistics(
    rows_of: Iterable[Mapping[str, object]],
    source: str,
    text: str,
    label: str | None,
    tokenizer: Tokenizer,
    read: ReadReport,
    *,
    keep_starts: bool,
) -> Statistics:
    odd = {name: Quotes() for name in ("empty", "no text but another type", *_ODD)}
    characters, tokens, hashes, labels = array("q"), array("q"), array("Q"), array("i")
    names: dict[str, int] = {}
    parts: list[Sketches] = []
    sample, starts = _Sample(), []
    for rows in _chunks(rows_of, text, source):
        texts = []
        for row, value in rows:
            number = len(hashes) + 1
            stripped = value.strip()
            _note_oddities(odd, number, value, value_of(dict(row), text)[1])
            texts.append(value)
            hashes.append(text_hash(stripped))
            characters.append(len(value))
            name = _text(row, label, source, "--label") if label else ""
            labels.append(names.setdefault(name, len(names)) if name else -1)
            sample.add(number, value)
        tokens.extend(len(ids) for ids in tokenizer.encode_batch(texts))
        parts.append(sketch(texts))
        if keep_starts:
            starts += [t[:200] for t in texts]
    sketches = join(parts)
    lengths = np.frombuffer(characters, np.int64)
    odd[f"longer than {_LONG} times the median"] = _long_rows(lengths)
    return Statistics(
        source, lengths, np.frombuffer(tokens, np.int64), np.frombuffer(hashes, np.uint64), np.frombuffer(labels, np.int32),
        list(names), sketches, near_earlier(sketches), odd, sample.texts, starts, read.as_dict(),
    )  # fmt: skip


def _chunks(rows: Iterable[Mapping[str, object]], text: str, source: str) -> Iterator[list[tuple[Mapping[str, object], str]]]:
    """Rows with their texts, in lists bounded in rows and in characters."""
    out: list[tuple[Mapping[str, object], str]] = []
    size = 0
    for row in rows:
        value = _text(row, text, source, "--text")
        out.append((row, value))
        size += len(value)
        if len(out) >= _CHUNK_ROWS or size >= _CHUNK_CHARACTERS:
            yield out
            out, size = [], 0
    if out:
        yield out


def _text(row: Mapping[str, object], name: str, source: str, option: str) -> str:
    """A row's column as text; an empty one for nothing.

    Raises:
        InputError: there is no such column.
    """
    there, value = value_of(dict(row), name)
    if not there:
        raise InputError(no_column(source, name, map(str, row), option))
    return replace_surrogates(value) if isinstance(value, str) else "" if value is None else str(value)


def _note_oddities(odd: dict[str, Quotes], number: int, text: str, value: object) -> None:
    if not text.strip():
        odd["empty"].add(number, text)
    if value is not None and not isinstance(value, str):
        odd["no text but another type"].add(number, f"{type(value).__name__}: {text}")
    for name, test in _ODD.items():
        if test(text):
            odd[name].add(number, text)


def _long_rows(characters: np.ndarray) -> Quotes:
    quotes = Quotes()
    if len(characters):
        limit = _LONG * max(float(np.median(characters)), 1.0)
        for row in np.flatnonzero(characters > limit):
            quotes.add(int(row) + 1, f"{int(characters[row]):,} characters")
    return quotes


class _Sample:
    """Rows spread evenly over a set of unknown size: every n-th, n doubling whenever there are too many."""

    def __init__(self) -> None:
        self._every, self._rows = 1, list[tuple[int, str]]()

    def add(self, number: int, text: str) -> None:
        if (number - 1) % self._every:
            return
        self._rows.append((number, text[:2000]))
        if len(self._rows) >= 2 * _SAMPLE_ROWS:
            self._every *= 2
            self._rows = [(n, t) for n, t in self._rows if (n - 1) % self._every == 0]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self._rows]


# ---- figures


class Truncation(NamedTuple):
    """What is lost when texts are cut to a length."""

    length: int
    rows_cut: float
    """Share of rows that lose their end."""
    tokens_lost: float
    """Share of all tokens that are cut off."""


def truncation(tokens: np.ndarray) -> list[Truncation]:
    """For each candidate length, special tokens counted, up to the first that cuts nothing."""
    total = max(int(tokens.sum()), 1)
    out = []
    for length in CANDIDATE_LENGTHS:
        over = np.maximum(tokens - (length - _SPECIAL_TOKENS), 0)
        out.append(Truncation(length, float((over > 0).mean()) if len(tokens) else 0.0, float(over.sum()) / total))
        if not over.any():
            break
    return out


def suggest(tokens: np.ndarray) -> int:
    """The shortest candidate length that cuts at most one row in a hundred."""
    fits = [t.length for t in truncation(tokens) if t.rows_cut <= _ROWS_CUT]
    return fits[0] if fits else CANDIDATE_LENGTHS[-1]


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Mean, least, median, 95th and 99th percentile, most."""
    if not len(values):
        return {}
    points = np.percentile(values, [0, 50, 95, 99, 100], method="inverted_cdf")
    return {"mean": round(float(values.mean()), 2)} | dict(
        zip(("least", "median", "95 %", "99 %", "most"), map(float, points), strict=True)
    )


def label_counts(s: Statistics) -> dict[str, int]:
    """Rows by label, most first."""
    known = s.labels[s.labels >= 0]
    counts = np.bincount(known, minlength=len(s.label_names))
    return {s.label_names[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}


def languages(texts: list[str]) -> dict[str, float]:
    """Share of each language among texts with letters, guessed from a sample; the most frequent five."""
    from py3langid.langid import classify

    known = [t for t in itertools.islice(texts, _SAMPLE_ROWS) if any(c.isalpha() for c in t)]
    counts = Counter(str(classify(t[:500])[0]) for t in known)
    return {name: n / len(known) for name, n in counts.most_common(5)}

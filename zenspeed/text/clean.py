"""Cleaning of texts, one at a time, by `data.clean`; every change and every text left out is counted.

The order of the steps is: repair, Unicode form, markup, personal data, language, case, punctuation, stop words, length. So
tags stand where later steps may change them (`<MAIL>` without punctuation is ` MAIL `), and the language is told before words
are taken out of the text.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from zenspeed.errors import InputError
from zenspeed.text.clean_config import CleanConfig
from zenspeed.text.pii import scrub

_LATIN_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_BLANKS = re.compile(r"[ \t]{2,}")
_LANGUAGE_CHARACTERS = 2000  # enough to tell it
_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")


class _Step(NamedTuple):
    name: str
    change: Callable[[str], str | None]
    """None: the text is left out."""


class Cleaner:
    """What `config` says, made ready once.

    Raises:
        InputError: a package that a step needs is not installed, or a language is not known.
    """

    def __init__(self, config: CleanConfig) -> None:
        self.changed: Counter[str] = Counter()
        """Texts that a step changed."""
        self.dropped: Counter[str] = Counter()
        """Texts that a step left out."""
        self.tags: Counter[str] = Counter()
        """Tags put in the place of personal data."""
        self.texts = 0
        self._steps = list(self._make(config))

    def __call__(self, text: str) -> str | None:
        """The text cleaned, or None if it is left out."""
        self.texts += 1
        for step in self._steps:
            cleaned = step.change(text)
            if cleaned is None:
                self.dropped[step.name] += 1
                return None
            if cleaned != text:
                self.changed[step.name] += 1
                text = cleaned
        return text

    def as_dict(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "changed": dict(self.changed),
            "dropped": dict(self.dropped),
            "tags": dict(self.tags),
        }

    def _make(self, config: CleanConfig) -> list[_Step]:
        steps = []
        if config.repair:
            steps.append(_Step("repair", _package("ftfy", "ftfy", "repair").fix_encoding))
        if config.unicode is not None:
            form = config.unicode
            steps.append(_Step("unicode", lambda text: unicodedata.normalize(form, text)))
        if config.markup == "tags":
            steps.append(_Step("markup", _strip_tags()))
        if config.markup == "article":
            extract = _package("trafilatura", "trafilatura", "markup").extract
            steps.append(_Step("markup", lambda text: extract(text) or None))
        if config.pii:
            steps.append(_Step("pii", self._scrub))
        if config.languages:
            steps.append(_Step("languages", _in_languages(config.languages)))
        if config.lowercase:
            steps.append(_Step("lowercase", str.lower))
        if config.punctuation:
            steps.append(_Step("punctuation", without_punctuation))
        if config.stop_words:
            steps.append(_Step("stop_words", _without_stop_words(config.stop_words)))
        steps.append(_Step("length", _of_length(config.min_characters, config.max_characters)))
        return steps

    def _scrub(self, text: str) -> str:
        text, found = scrub(text)
        self.tags.update(found)
        return text


def _package(module: str, package: str, step: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"data.clean.{step}: needs the package {package}; install it: pip install 'zenspeed[data]'") from None


def _strip_tags() -> Callable[[str], str]:
    parser: Any = _package("selectolax.lexbor", "selectolax", "markup").LexborHTMLParser

    def strip(text: str) -> str:
        if "<" not in text and "&" not in text:
            return text
        tree = parser(text)
        tree.strip_tags(["script", "style", "noscript", "template", "head"])
        for node in tree.css("br, p, div, li, tr, h1, h2, h3, h4, h5, h6, blockquote, pre"):
            node.insert_after("\n")
        body: str = tree.body.text(separator="") if tree.body is not None else ""
        return re.sub(r"\n{3,}", "\n\n", body).strip()

    return strip


def _in_languages(wanted: list[str]) -> Callable[[str], str | None]:
    from py3langid.langid import classify, rank

    known = {name for name, _ in rank("a")}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"data.clean.languages: {unknown[0]!r} is not known; it is one of {', '.join(sorted(known))}")
    return lambda text: text if classify(text[:_LANGUAGE_CHARACTERS])[0] in wanted else None


def without_punctuation(text: str) -> str:
    """`text` with a space for each punctuation mark or symbol, blanks drawn together; an apostrophe inside a word stays."""
    kept = _APOSTROPHES.sub("\ue000", text)
    plain = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in kept)
    return _BLANKS.sub(" ", plain.replace("\ue000", "'")).strip(" ")


def _without_stop_words(languages: list[str]) -> Callable[[str], str]:
    package = _package("stopwordsiso", "stopwordsiso", "stop_words")
    unknown = [name for name in languages if not package.has_lang(name)]
    if unknown:
        raise InputError(f"data.clean.stop_words: there is no list for {unknown[0]!r}; give languages as en, zh")
    words = frozenset(word.casefold() for name in languages for word in package.stopwords(name))
    cut = _package("rjieba", "rjieba", "stop_words").cut if "zh" in languages else None

    def without(text: str) -> str:
        if cut is not None:
            text = _HAN.sub(lambda m: "".join(w for w in cut(m[0]) if w not in words), text)
        text = _LATIN_WORD.sub(lambda m: "" if m[0].replace("’", "'").casefold() in words else m[0], text)
        return _BLANKS.sub(" ", text).strip(" ")

    return without


def _of_length(low: int, high: int | None) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        size = len(text)
        return text if size >= low and (high is None or size <= high) and text.strip() else None

    return check

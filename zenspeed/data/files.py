"""The files that a source names: a file, a folder, a glob, a saved dataset, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path

from zenspeed.config import InputError, nearest
from zenspeed.data.hub import HUB, hub_files
from zenspeed.data.read_arrow import is_saved_dataset, saved_dataset_files
from zenspeed.data.streams import COMPRESSED, File, suffix_of
from zenspeed.errors import missing
from zenspeed.storage import fetch_files, is_remote

PYTHON_DOCS = "python-docs"
TEXT_SUFFIXES = (".txt", ".md", ".py", ".rst")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
CACHE = Path("~/.cache/zenspeed")
_OTHER_KINDS = {
    b"%PDF-": ("a PDF", "save its text first"),
    b"PK\3\4": ("a zip archive, or a document of an office program", "unpack it, or save it as CSV or text"),
    b"\xd0\xcf\x11\xe0": ("a document of an office program", "save it as CSV or text"),
    b"SQLite f": ("a database", "write its table as CSV"),
}
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES)
"""What is read in a folder, compressed or not; a file named by itself may have any suffix, and is plain text then."""


def source_files(
    source: str, *, split: str = "train", endpoint: str | None = None, fetch: bool = False, cache: Path = CACHE
) -> list[File]:
    """The files that `source` names, in the order they are read, each with something in it.

    `split`, `endpoint` and `fetch` are of saved datasets and the hub; `cache` is for copies of what lies in object storage.

    Raises:
        InputError: there is none.
    """
    if source.startswith(HUB):
        return hub_files(source, split, endpoint, SUFFIXES, fetch)
    if is_remote(source):
        return list(fetch_files(source, cache, (*SUFFIXES, *(s + c for s in SUFFIXES for c in COMPRESSED))))
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = saved_dataset_files(path, split) if is_saved_dataset(path) else _files_in(path)
        elif path.exists():
            _check_kind(path)
            files = [path]
        elif glob.has_magic(source):
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(p for p in map(Path, matches) if p.is_file())
            if not files:
                raise InputError(f"{source}: no file matches")
        else:
            if path.name == source and (hint := nearest(source, [PYTHON_DOCS])):
                raise InputError(f"{source}: no such file{hint}")
            raise missing(source, "text")
        filled: list[File] = [p for p in files if p.stat().st_size]
    except OSError as error:
        raise InputError(f"{error.filename or source}: cannot be read: {error.strerror}") from None
    if not filled:
        raise InputError(f"{source}: {'is empty' if files == [path] else 'all files in it are empty'}; give text to train on")
    return filled


def _check_kind(path: Path) -> None:
    """Refuses a file whose format is known to be neither text nor rows, by what it begins with."""
    with path.open("rb") as file:
        begin = file.read(8)
    for magic, (kind, fix) in _OTHER_KINDS.items():
        if begin.startswith(magic) and suffix_of(path) not in (".parquet", ".arrow"):
            raise InputError(f"{path}: {kind}, not text; {fix}")


def _files_in(folder: Path) -> list[Path]:
    """Files below `folder` with a suffix we read, hidden files and folders left out."""
    files, others = [], Counter[str]()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if suffix_of(path) in SUFFIXES and path.is_file():
                files.append(path)
            else:
                others[path.suffix or path.name] += 1
    if not files:
        there = "; there are " + ", ".join(f"{n} {kind}" for kind, n in others.most_common(3)) if others else ""
        known = ", ".join((*SUFFIXES, *COMPRESSED))
        raise InputError(f"{folder}: no file of {known} in this folder{there}; name others by a glob, as '{folder}/*.log'")
    return sorted(files)

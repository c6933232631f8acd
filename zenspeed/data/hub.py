"""Datasets of the Hugging Face hub, or of a mirror that speaks its interface: their files, fetched once and kept.

`hf:owner/name`, and `hf:owner/name/folder` for the files below a folder of it. The files are found by name, as the hub's own
viewer does: those whose path has the split as a word (`data/train-00000-of-00004.parquet`, `train.csv`), or all of them for
the split `train` if no path names any split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zenspeed.config import InputError
from zenspeed.data.streams import needs, suffix_of

HUB = "hf:"
_SPLITS = ("train", "validation", "valid", "dev", "val", "test", "eval")


def hub_files(source: str, split: str, endpoint: str | None, suffixes: Sequence[str]) -> list[Path]:
    """Local copies of the files of one split, fetched when they are not there yet.

    Raises:
        InputError: the name is none, the hub cannot be reached, or it has no such split.
    """
    hub = needs("huggingface_hub", "huggingface_hub", source)
    parts = source.removeprefix(HUB).strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{source}: name a dataset as hf:owner/name, or hf:owner/name/folder")
    name, folder = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        there = hub.HfApi(endpoint=endpoint).list_repo_files(name, repo_type="dataset")
        chosen = split_files([f for f in there if f.startswith(f"{folder}/" if folder else "")], split, suffixes, source)
        fetched = [hub.hf_hub_download(name, f, repo_type="dataset", endpoint=endpoint) for f in chosen]
    except InputError:
        raise
    except Exception as error:  # requests, the hub and the file system each have their own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: cannot be fetched: {reason}; another address of the hub: data.endpoint=URL") from None
    return [Path(path) for path in fetched]


def split_files(names: Sequence[str], split: str, suffixes: Sequence[str], source: str) -> list[str]:
    """Those of `names` that belong to `split`, in order."""
    data = sorted(n for n in names if suffix_of(Path(n)) in suffixes and suffix_of(Path(n)) not in (".md", ".py"))
    chosen = [n for n in data if split in _words(n)]
    if not chosen and split == "train" and not any(s in _words(n) for n in data for s in _SPLITS):
        chosen = data
    if not chosen:
        splits = sorted({s for n in data for s in _words(n) if s in _SPLITS})
        there = (
            f"its files name the splits {', '.join(splits)}; set data.split" if splits else "it has no file that can be read"
        )
        raise InputError(f"{source}: no files of the split {split!r}; {there}")
    return chosen


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))

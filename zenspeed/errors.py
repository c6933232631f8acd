"""The one error for what a user can put right, and the one answer to a path at which there is not what was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ALIKE = 0.6
"""Share of equal characters from which one name is taken to be meant by another."""


class InputError(ValueError):
    """What the user gave cannot be used. The message names the value, the place and the fix."""

    code = 2
    """With which the command line exits."""


class RolledBack(InputError):
    """A run on parameter servers went back to a checkpoint, from which servers and workers have to begin anew."""

    code = 75
    """As of sysexits.h, EX_TEMPFAIL: to be tried again."""


class _Kind(NamedTuple):
    """What a path was to be."""

    name: str
    otherwise: str
    """What to do where there is none. `{path}`: the path that was given."""
    home: str | None = None
    """Folders in which they usually are, a pattern; None: only those beside the path are looked at."""
    holds: tuple[str, ...] = ()
    """Of a folder: the names of which it holds one."""


_RUN = ("checkpoints", "recipe.yaml")
_KINDS = {
    "recipe": _Kind("recipe", "write one, or give a text instead of it", "recipes"),
    "run": _Kind("run", "zenspeed train makes one", "runs", _RUN),
    "model": _Kind("run or folder of Hugging Face layout", "zenspeed train makes a run", "runs", (*_RUN, "config.json")),
    "index": _Kind("index", "make one: zenspeed index DOCUMENTS {path}", "runs", ("index.json",)),
    "export": _Kind("exported folder", "zenspeed export RUN makes one", "runs/*", ("checksums.json",)),
    "text": _Kind("file", "give a text file, a folder or python-docs"),
    "file": _Kind("file", "give one that is there"),
}


def missing(path: Path | str, kind: str = "file", problem: str | None = None) -> InputError:
    """The error for a path at which there is nothing that helps: what was meant, or what there is, and how to list it.

    Args:
        kind: recipe, run, model (a run, or Hugging Face layout), index, export (a folder), text (to train on) or file.
        problem: what is wrong with it; default: there is no such thing.
    """
    path, wanted = Path(path), _KINDS[kind]
    said = f"{path}: {problem or f'no such {wanted.name}'}"
    there = sorted(dict.fromkeys(_there(path, wanted, kind)), key=lambda other: -_likeness(path, other))
    if not there:
        return InputError(f"{said}; {wanted.otherwise.format(path=path)}")
    best = there[0]
    names = f"did you mean {best}?" if _likeness(path, best) >= ALIKE else f"there are {', '.join(map(str, there[:3]))}"
    listing = f"ls -d {best.parent / '*'}" if wanted.holds else f"ls {best.parent / f'*{best.suffix}'}"
    return InputError(f"{said}; {names} (all: {listing})")


def _there(path: Path, wanted: _Kind, kind: str) -> Iterator[Path]:
    """Others of its kind beside `path`, where they usually are, and here."""
    folders = [path.parent] if wanted.home is None else [path.parent, *sorted(Path().glob(wanted.home)), Path()]
    for folder in folders:
        try:
            entries = sorted(folder.iterdir())
        except OSError:  # not there, or not for us to read
            continue
        for other in entries:
            if wanted.holds:
                fits = any((other / name).exists() for name in wanted.holds)
            elif kind == "recipe":
                fits = other.suffix in (".yaml", ".yml")
            else:
                fits = other.is_file() and (other.suffix == path.suffix or _likeness(path, other) >= ALIKE)
            if fits and other != path and not other.name.startswith("."):
                yield other


def _likeness(a: Path, b: Path) -> float:
    """Of the names; the endings that all of a kind have say nothing."""
    first, second = (a.stem, b.stem) if a.suffix == b.suffix else (a.name, b.name)
    return difflib.SequenceMatcher(None, first, second).ratio()

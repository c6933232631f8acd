"""The state of a run, saved by those who are left when a rank is lost: nothing is repeated but the step under way.

Where copies of the state are on several ranks (stage 0; hybrid sharding), a rank that hears that another has gone writes what
it holds, beside the checkpoints, before it ends:

    <run>/rescue/step-00000123/rank-00001.safetensors, .json, .state

When all have ended, the launcher makes one checkpoint of the parts that together are whole (`assemble`), and the run goes on
from it as from any other. Ranks may have been one update apart; the later step that is whole is taken.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zenspeed.checkpoint import copy_part, list_checkpoints, write_manifest, write_part

FOLDER = "rescue"
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|recvValue failed|Socket closed", re.I)


def is_lost_peer(error: BaseException) -> bool:
    """Whether this is what a rank hears when another one has gone."""
    return isinstance(error, RuntimeError) and bool(LOST.search(str(error)))


def write(
    run: Path, rank: int, step: int, shards: Iterable[tuple[str, str, torch.Size, int, int, Tensor]], scalars: Any, state: Any
) -> None:
    """Writes what this rank holds of the state after `step`."""
    folder = run / FOLDER / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{rank:05d}"
    path.with_suffix(".state").write_text(json.dumps(state), encoding="utf-8")
    write_part(path.with_suffix(".safetensors"), *copy_part(shards, scalars))


def assemble(run: Path) -> Path | None:
    """Makes a checkpoint of what the ranks left behind, if it is whole and newer than the last; forgets the rest."""
    there = list_checkpoints(run / "checkpoints")
    made = None
    for folder in sorted((run / FOLDER).glob("step-*"), reverse=True):
        if there and folder.name <= there[-1].name:
            break
        chosen = _whole(folder)
        if chosen:
            made = _make(run / "checkpoints", folder, chosen)
            break
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    return made


def _whole(folder: Path) -> list[Path]:
    """Few parts that hold every element; none where some are missing."""
    chosen: list[Path] = []
    covered: dict[tuple[str, str], set[tuple[int, int]]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for path in sorted(folder.glob("rank-*.json")):
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        new = [e for e in entries if (e[3], e[4]) not in covered.get((e[0], e[1]), set())]
        if new:
            chosen.append(path)
        for name, kind, shape, start, stop, _ in new:
            covered.setdefault((name, kind), set()).add((start, stop))
            sizes[name, kind] = prod(shape)
    states = list(folder.glob("*.state"))
    names = set(json.loads(states[0].read_text(encoding="utf-8"))["parameters"]) if states else set()
    missing = names - {name for name, _ in covered}
    whole = not missing and all(_fills(spans, sizes[key]) for key, spans in covered.items())
    return chosen if whole else []


def _fills(spans: set[tuple[int, int]], size: int) -> bool:
    end = 0
    for start, stop in sorted(spans):
        if start > end:
            return False
        end = max(end, stop)
    return end == size


def _make(checkpoints: Path, folder: Path, chosen: list[Path]) -> Path:
    partial = checkpoints / f"{folder.name}.rescue.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, path in enumerate(chosen):
        for suffix in (".safetensors", ".json"):
            shutil.copy(path.with_suffix(suffix), partial / f"rank-{number:05d}{suffix}")
    state: Mapping[str, Any] = json.loads(chosen[0].with_suffix(".state").read_text(encoding="utf-8"))
    kept = {key: value for key, value in state.items() if key != "parameters"}
    write_manifest(partial, int(folder.name.removeprefix("step-")), len(chosen), kept)
    return partial.rename(checkpoints / folder.name)

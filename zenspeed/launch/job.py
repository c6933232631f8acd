"""What a cluster is asked to run, and the settings of each kind of cluster, given as `--with KEY=VALUE`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zenspeed.config import Config, load, nearest, validate
from zenspeed.errors import InputError
from zenspeed.launch.rendezvous import Rendezvous
from zenspeed.recipe import Recipe

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Job:
    """A recipe on a number of machines, with the same number of processes on each."""

    recipe_file: Path
    recipe: Recipe
    arguments: list[str]
    """What follows the recipe: `--set`s, and `--resume`, for a cluster may start the same command again."""
    nodes: tuple[int, int]
    processes: int
    max_restarts: int

    @property
    def name(self) -> str:
        """Letters, digits and dashes, as every kind of cluster takes them; at most 40."""
        name = self.recipe.run.name or self.folder.name
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "zenspeed"

    @property
    def folder(self) -> Path:
        assert self.recipe.run.folder is not None
        return self.recipe.run.folder

    def span(self) -> str:
        """As `--nnodes` has it."""
        least, most = self.nodes
        return str(most) if least == most else f"{least}:{most}"


def job_of(arguments: Sequence[str], nodes: str, processes: int, max_restarts: int, on: str) -> Job:
    """The job of `train RECIPE.yaml …`.

    Raises:
        InputError: another command, a wrong recipe, or one without a fixed folder.
    """
    if len(arguments) < 2 or arguments[0] != "train" or not arguments[1].endswith((".yaml", ".yml")):
        raise InputError(f"--on {on}: runs train with a recipe, got {' '.join(arguments) or 'nothing'}; try: train recipe.yaml")
    file, rest = Path(arguments[1]), list(arguments[2:])
    sets = [rest[i + 1] for i, a in enumerate(rest[:-1]) if a == "--set"]
    sets += [a.removeprefix("--set=") for a in rest if a.startswith("--set=")]
    recipe = load(Recipe, file, sets)
    if recipe.run.folder is None:
        raise InputError(
            f"--on {on}: a cluster may start a job again, which must find its run; name its place: --set run.folder=runs/mine"
        )
    rest += [] if "--resume" in rest else ["--resume"]
    return Job(file, recipe, rest, Rendezvous(nodes=nodes).span(), processes, max_restarts)


def settings_of(kind: type[C], pairs: Sequence[str]) -> C:
    """`KEY=VALUE` pairs as a `kind`; a key that is a list may be given several times."""
    data: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise InputError(f"--with {pair}: expected KEY=VALUE (keys: {', '.join(kind.model_fields)})")
        if key not in kind.model_fields:
            known = list(kind.model_fields)
            raise InputError(f"--with {pair}: unknown key{nearest(key, known)} (keys: {', '.join(known)})")
        if "list" in str(kind.model_fields[key].annotation):
            data[key] = [*_list(data.get(key)), value]
        else:
            data[key] = value
    return validate(kind, data, {(p.partition("=")[0],): f"--with {p}" for p in pairs}, "--with")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

"""Ranks forked from a process that has imported torch already: they start in a fraction of a second."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenspeed.chaos.faults import Fault, parts_of
from zenspeed.chaos.network import enter
from zenspeed.errors import InputError
from zenspeed.launch.train import LAST_LINES


def context() -> Any:
    """The multiprocessing context whose server has imported what a rank needs."""
    forkserver = multiprocessing.get_context("forkserver")
    # torch.optim alone imports torch._dynamo at its first use, 0.8 s in every process.
    forkserver.set_forkserver_preload(["zenspeed.training", "zenspeed.chaos.ranks", "torch._dynamo", "zenspeed.run"])
    return forkserver


class ForkedRank:
    """One rank; as `zenspeed.launch.supervise.Process` wants it."""

    def __init__(self, process: Any, said: Path) -> None:
        self._process, self._said = process, said
        process.start()
        self.pid: int = process.pid

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def last_words(self) -> list[str]:
        return [line for line in self._said.read_text(encoding="utf-8", errors="replace").splitlines() if line][-LAST_LINES:]


def run_rank(
    recipe: Mapping[str, Any],
    variables: Mapping[str, str],
    go_on: bool,
    said: Path,
    fault: Fault | None = None,
    first_attempt: bool = True,
    namespace: str | None = None,
) -> None:
    """The whole life of a rank: as `zenspeed train --resume` with that recipe, everything it says going to the file `said`."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= variables
    if namespace is not None:
        enter(namespace)
    import torch

    from zenspeed.config import validate
    from zenspeed.recipe import Recipe
    from zenspeed.run import begun
    from zenspeed.training import train

    torch.set_num_threads(1)
    checked = validate(Recipe, dict(recipe))
    parts = parts_of(fault, int(variables["RANK"]), first_attempt)
    try:
        found = begun(checked.run.folder) if go_on else None
        result = train(found.recipe if found else checked, resume=found.checkpoint if found else None, parts=parts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    sys.exit(130 if result.interrupted else 0)

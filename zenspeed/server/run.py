"""The door to training, whichever way processes work together: `zenspeed.train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from zenspeed.config import validate
from zenspeed.display import Display
from zenspeed.errors import RolledBack
from zenspeed.pace import Interrupt
from zenspeed.recipe import Recipe, fresh_folder
from zenspeed.server.client import Servers, read_key
from zenspeed.training import Parts, Result, Run
from zenspeed.training import train as train_in_parallel


class Place(NamedTuple):
    """Servers that run already, and their key."""

    addresses: list[str]
    key: bytes


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    display: Display | None = None,
    servers: Place | None = None,
    parts: Parts | None = None,
    began: float | None = None,
) -> Result:
    """Runs a recipe to its end, or from the checkpoint folder `resume` to its end.

    Args:
        servers: of a launched worker; what the recipe says of servers is then left alone.
        parts: what the run is made of, where that is to be something else.
        began: when the run's time began, on the clock of time.perf_counter; default: now.

    Raises:
        InputError: something the user gave cannot be used; nothing of an earlier run is changed.
        RolledBack: the run went back to a checkpoint, and servers that run already have to begin anew.
    """
    if recipe.parallel.mode == "data_parallel":
        return train_in_parallel(recipe, resume=resume, display=display, parts=parts, began=began)
    server = recipe.parallel.server
    if servers is None and server.addresses and server.key_file is not None:
        servers = Place(server.addresses, read_key(server.key_file))
    if servers is not None:
        return _work(recipe, servers, resume, display, parts, began)
    from zenspeed.run import begun
    from zenspeed.server.local import LocalServers

    recipe = settle(recipe, workers=1)
    while True:
        try:
            with LocalServers(server.count, folder_of(recipe), server.key_file) as local:
                return _work(recipe, Place(local.addresses, read_key(local.key_file)), resume, display, parts, began)
        except RolledBack:
            found = begun(recipe.run.folder)
            assert found is not None
            recipe, resume = found
            began = None  # what it took before is in the checkpoint


def settle(recipe: Recipe, workers: int) -> Recipe:
    """The recipe with its folder and the number of shares decided, so that all workers of a run have the same."""
    data = recipe.model_dump(mode="json")
    if recipe.run.folder is None:
        folder = fresh_folder(recipe)
        data["run"] |= {"name": folder.name, "folder": str(folder)}
    server = recipe.parallel.server
    data["parallel"]["server"]["shares"] = 1 if server.consistency == "asynchronous" else server.shares or workers
    return validate(Recipe, data)


def folder_of(recipe: Recipe) -> Path:
    """Where servers that are started with a run keep their journals."""
    assert recipe.run.folder is not None
    return recipe.run.folder / "servers" / time.strftime("%Y%m%d-%H%M%S")


def _same_precision(recipe: Recipe, servers: Servers) -> Recipe:
    """What the first worker measured decides for all."""
    data = recipe.model_dump(mode="json")
    if recipe.train.precision == "auto":
        data["train"]["precision"] = "bf16" if servers.compute_dtype == "bfloat16" else "fp32"
    return validate(Recipe, data)


def _work(
    recipe: Recipe, place: Place, resume: Path | None, display: Display | None, parts: Parts | None, began: float | None
) -> Result:
    """One worker, from its first word to the servers to its last."""
    from zenspeed.checkpoint import Checkpoint
    from zenspeed.server.worker import Work

    servers = Servers(place.addresses, place.key)
    ended = False
    try:
        servers.wait_until_started()
        number = max(1, servers.number) if servers.started else 0
        if servers.started:
            recipe = _same_precision(recipe, servers)

        def loop(run: Run, interrupt: Interrupt) -> Result:
            nonlocal ended
            work = Work(run, servers, Checkpoint(resume) if resume is not None and number == 0 else None)
            try:
                result = work.loop(interrupt)
            except RolledBack:
                ended = True
                raise
            ended = work.leads
            return result

        first = number == 0  # the others have the servers' weights
        resume = resume if first else None
        return train_in_parallel(recipe, resume=resume, display=display, number=number, loop=loop, parts=parts, began=began)
    finally:
        servers.close(stop_servers=ended)

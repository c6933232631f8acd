"""`zenspeed launch --on ray`: the processes of a run as workers of Ray Train, which places them and starts them anew.

A worker trains by the same `zenspeed.train` as a process of `zenspeed launch`, in the process group that Ray Train made: the
recipe and its losses are the same. After a failure Ray starts all workers again, and they go on from the newest checkpoint.
Servers and workers of a parameter server, which form no process group, are actors of their own (ray_servers.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zenspeed.config import Config
from zenspeed.errors import InputError
from zenspeed.launch.job import Job
from zenspeed.launch.ray_servers import Room, enter, said
from zenspeed.launch.ray_servers import run as run_servers
from zenspeed.launch.watch import beside


class RaySettings(Config):
    """`--with` of `--on ray`."""

    cpus: int = Field(1, ge=1)
    """Cores of a worker."""
    gpus: int = Field(0, ge=0, le=1)
    """GPUs of a worker."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Workers on as few machines as they fit on, or on as many as there are; strict: or not at all."""
    wait_seconds: int = Field(60, ge=1)
    """How long the cluster may take to answer, and then to have room."""


def submit(job: Job, settings: RaySettings, address: str | None, *, dry_run: bool) -> int:
    """Runs the job to its end on the cluster at `address`; None: the one this machine is part of, or else a new one here.

    Raises:
        InputError: ray is not installed, the cluster does not answer or has no room, or what training raised.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise InputError(f"--on ray: {error}; install it: pip install 'zenspeed[ray]'") from None
    workers = job.nodes[1] * job.processes
    need = {"CPU": float(settings.cpus)} | ({"GPU": float(settings.gpus)} if settings.gpus else {})
    if dry_run:
        print(f"{workers} workers, each {need}, {settings.placement}, at {address or 'this machine'}: {job.recipe_file}")
        return 0
    _connect(ray, address, settings.wait_seconds)
    _check_room(ray.cluster_resources(), need, workers)
    if job.recipe.parallel.mode == "parameter_server":
        try:
            return run_servers(job, ray, Room(workers, need, settings.placement, settings.wait_seconds))
        finally:
            ray.shutdown()
    trainer = TorchTrainer(
        _train,
        train_loop_config={"recipe": job.recipe.model_dump(mode="json"), "folder": str(Path.cwd())},
        torch_config=TorchConfig(backend=None if settings.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, resources_per_worker=need, use_gpu=settings.gpus > 0, placement_strategy=settings.placement
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(job.folder.expanduser().absolute() / "ray"),
            # Once at least: a port that Ray found free may be taken when torch comes to it.
            failure_config=FailureConfig(max_failures=max(1, job.max_restarts)),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _said(error) from None
    finally:
        ray.shutdown()
    return 0


def _connect(ray: Any, address: str | None, wait_seconds: int) -> None:
    """Joins a cluster and says where its dashboard is."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(wait_seconds))
    try:
        context = ray.init(address=address, log_to_driver=True, logging_level="WARNING", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--on {address}: no Ray cluster answers there: {reason}; start one: ray start --head") from None
    if url := getattr(context, "dashboard_url", None):
        print(f"dashboard  http://{url}", flush=True)


def _check_room(there: Mapping[str, float], need: Mapping[str, float], workers: int) -> None:
    for name, amount in need.items():
        if there.get(name, 0.0) < amount * workers:
            raise InputError(
                f"--on ray: {workers} workers need {amount * workers:g} {name}, the cluster has {there.get(name, 0.0):g}; "
                "ask for fewer: -n, --nnodes or --with cpus=…"
            )


def _train(config: Mapping[str, Any]) -> None:
    """What each worker does."""
    from zenspeed.config import validate
    from zenspeed.recipe import Recipe
    from zenspeed.run import begun
    from zenspeed.training import train

    enter(config["folder"])
    recipe = validate(Recipe, config["recipe"])
    found = begun(recipe.run.folder, (), None, recipe.run.storage)
    recipe = recipe if found is None else found.recipe
    assert recipe.run.folder is not None
    with beside(recipe.run.folder, recipe.guard, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])):
        train(recipe, resume=found and found.checkpoint)


def _said(error: Exception) -> InputError:
    """What the first worker that failed said."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error.__cause__ or error)
    return InputError(f"--on ray: training failed: {said(cause)}")

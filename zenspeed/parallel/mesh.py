"""Processes and the mesh they form. The mesh is built once, passed as an argument, never global.

Every rank has a place on named axes; today `replicate` × `shard`: ranks along `shard` hold one copy of the model states
between them, ranks along `replicate` hold equal parts of different copies. A new parallel axis is one more entry of AXES.
One process is a mesh of one: the same path, no special case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from zenspeed.config import InputError

AXES = ("replicate", "shard")


class World(NamedTuple):
    """This process among all: rank (0 … size - 1), rank on its host, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def pick_device(local_rank: int) -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, local_rank)


def start_world(timeout_seconds: float = 1800.0) -> World:
    """Joins the process group the launcher described (RANK, WORLD_SIZE, MASTER_ADDR …), or starts one of a single process."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(local_rank)
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_seconds)
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
            meet()
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def meet() -> None:
    """Returns when all ranks of the group have connected to each other.

    A rank of gloo is through with connecting as soon as its own side is, and one that then ends at once takes the connections
    away that others are still making (`connectFullMesh failed … Connection closed by peer`).
    """
    if "gloo" in str(dist.get_backend_config()):
        dist.all_reduce(torch.zeros(1))


@contextmanager
def world() -> Iterator[World]:
    """`start_world` for the length of a `with` block; a group that was there before is left alone."""
    owned = not dist.is_initialized()
    try:
        yield start_world()
    finally:
        if owned and dist.is_initialized():
            dist.destroy_process_group()


def build_mesh(world: World, shard_ranks: int | None = None) -> DeviceMesh:
    """The mesh of all ranks: world size / shard_ranks replicas, each over `shard_ranks` ranks; None: one copy over all."""
    shard = shard_ranks or world.size
    if world.size % shard:
        raise InputError(
            f"parallel.shard_ranks: {shard} does not divide the number of ranks: {world.size} / {shard} = "
            f"{world.size / shard:.2f}; take a divisor of {world.size}"
        )
    return init_device_mesh(world.device.type, (world.size // shard, shard), mesh_dim_names=AXES)

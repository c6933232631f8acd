"""`comm.*`: torch.distributed under the name scripts know it by, with `init_distributed`."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from zenspeed.compat.deepspeed import init_distributed
from zenspeed.compat.zero import engines

__all__ = ["get_local_rank", "get_world_group", "init_distributed", "log_summary"]


def get_local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_world_group() -> Any:
    return dist.group.WORLD


def log_summary(show_straggler: bool = False) -> None:
    """Prints, on rank 0, the collectives of every engine whose config has comms_logger.enabled.

    Args:
        show_straggler: print every rank's table: the rank that waits least is the one the others wait for.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    for engine in engines():
        traffic = engine._observer.traffic
        if traffic is not None and (rank == 0 or show_straggler):
            print(f"rank {rank}\n{traffic.summary()}", flush=True)


def __getattr__(name: str) -> Any:
    """Everything else is torch.distributed's own."""
    try:
        return getattr(dist, name)
    except AttributeError:
        raise AttributeError(f"zenspeed.comm has no {name!r}, nor has torch.distributed") from None

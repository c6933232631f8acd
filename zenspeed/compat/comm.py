"""`comm.*`: torch.distributed under the name scripts know it by, with `init_distributed`."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from zenspeed.compat.deepspeed import init_distributed

__all__ = ["get_local_rank", "get_world_group", "init_distributed"]


def get_local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_world_group() -> Any:
    return dist.group.WORLD


def __getattr__(name: str) -> Any:
    """Everything else is torch.distributed's own."""
    try:
        return getattr(dist, name)
    except AttributeError:
        raise AttributeError(f"zenspeed.comm has no {name!r}, nor has torch.distributed") from None

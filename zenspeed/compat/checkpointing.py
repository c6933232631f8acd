"""Activation checkpointing: forward keeps only inputs, backward runs the function again (Chen et al. 2016, arXiv 1604.06174).

torch's non-reentrant implementation, on any device. Settings that place saved activations elsewhere are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint as _checkpoint

from zenspeed.config import InputError

_configured = False


def configure(
    mpu_: Any = None,
    deepspeed_config: Any = None,
    partition_activations: bool | None = None,
    contiguous_checkpointing: bool | None = None,
    num_checkpoints: int | None = None,
    checkpoint_in_cpu: bool | None = None,
    synchronize: bool | None = None,
    profile: bool | None = None,
) -> None:
    """Takes the settings. Those that need model-parallel ranks or another memory are refused.

    Raises:
        InputError: `partition_activations`, `contiguous_checkpointing` or `checkpoint_in_cpu` is set.
    """
    refused = {
        "partition_activations": partition_activations,
        "contiguous_checkpointing": contiguous_checkpointing,
        "checkpoint_in_cpu": checkpoint_in_cpu,
    }
    for name, value in refused.items():
        if value:
            raise InputError(f"checkpointing.configure: {name}=True is not built; leave it out, recomputation itself works")
    global _configured
    _configured = True


def is_configured() -> bool:
    return _configured


def reset() -> None:
    """Nothing is kept between steps; for scripts that call it."""


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, whose activations are computed again in backward; random numbers come out the same."""
    return _checkpoint(function, *args, use_reentrant=False, **kwargs)


non_reentrant_checkpoint = checkpoint

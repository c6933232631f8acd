"""Activation checkpointing: forward keeps only inputs, backward runs the function again (Chen et al. 2016, arXiv 1604.06174).

torch's non-reentrant implementation, on any device. What is kept, the inputs, lies on the device or, if asked for, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint as _checkpoint

from zenspeed.compat import deepspeed_config as deepspeed_config_module

_configured = False
_on_host = False


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
    """Takes the settings; an argument comes before the config's section activation_checkpointing.

    Args:
        deepspeed_config: a dict or the path of a file.
        checkpoint_in_cpu: keep the inputs on the host until backward.

    The others have no effect, for the reasons that docs/deepspeed.md gives for their keys.
    """
    global _configured, _on_host
    _configured = True
    if deepspeed_config is not None:
        settings = deepspeed_config_module.load(deepspeed_config, world_size=1, batch_required=False)
        _on_host = settings.activation_checkpointing.cpu_checkpointing
    if checkpoint_in_cpu is not None:
        _on_host = checkpoint_in_cpu


def is_configured() -> bool:
    return _configured


def reset() -> None:
    """Nothing is kept between steps; for scripts that call it."""


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, whose activations are computed again in backward; random numbers come out the same."""
    if not _on_host:
        return _checkpoint(function, *args, use_reentrant=False, **kwargs)
    with save_on_cpu():
        return _checkpoint(function, *args, use_reentrant=False, **kwargs)


non_reentrant_checkpoint = checkpoint

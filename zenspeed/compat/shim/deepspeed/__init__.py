"""`import deepspeed` for scripts that are to run as they are: every name is zenspeed's.

This folder is not installed; it stands on PYTHONPATH only in processes started by `zenspeed launch --as-deepspeed` (or
where `zenspeed shim` was put there by hand).
"""

import atexit
from typing import NoReturn

import torch

from zenspeed.compat import checkpointing as checkpointing
from zenspeed.compat import zero as zero
from zenspeed.compat.accelerator import get_accelerator as get_accelerator
from zenspeed.compat.deepspeed import EngineArgs as EngineArgs
from zenspeed.compat.deepspeed import add_config_arguments as add_config_arguments
from zenspeed.compat.deepspeed import init_distributed as init_distributed
from zenspeed.compat.deepspeed import initialize as initialize
from zenspeed.compat.deepspeed_config import DeepSpeedConfig as DeepSpeedConfig
from zenspeed.compat.engine import DeepSpeedEngine as DeepSpeedEngine
from zenspeed.compat.utils import log_dist as log_dist
from zenspeed.compat.utils import logger as logger
from zenspeed.errors import InputError as DeepSpeedConfigError  # noqa: F401

from . import accelerator, checkpoint, comm, ops, runtime, utils  # noqa: F401

__version__ = "0.19.8+zenspeed"
__version_major__, __version_minor__, __version_patch__ = 0, 19, 8
version, git_hash, git_branch = __version__, None, None
dist = comm

_REFUSED = {
    "init_inference": "there is no inference engine behind this door; use the module itself in eval mode",
    "InferenceEngine": "there is no inference engine behind this door",
    "tp_model_init": "tensor parallelism is not built yet",
    "PipelineModule": "pipeline parallelism is not built yet",
    "PipelineEngine": "pipeline parallelism is not built yet",
    "pipe": "pipeline parallelism is not built yet",
    "moe": "expert parallelism is not built yet",
}


def __getattr__(name: str) -> NoReturn:
    why = _REFUSED.get(name, "zenspeed does not have it")
    raise AttributeError(f"deepspeed.{name}: {why}")


def _leave() -> None:
    """Scripts rarely destroy their group, and torch's gloo threads may abort a process that ends with one."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


atexit.register(_leave)

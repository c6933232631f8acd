"""Names that Transformers and other libraries reach for; nothing is patched here, so its hooks wrap torch's own functions."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from zenspeed.compat.accelerator import get_accelerator
from zenspeed.compat.zero import GatheredParameters, Init, register_external_parameter

__all__ = ["GatheredParameters", "Init", "ZeroParamStatus", "get_accelerator", "register_external_parameter"]

_orig_torch_arange = torch.arange


class ZeroParamStatus(Enum):
    """Whether a parameter is whole on this rank."""

    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


def zero_wrapper_for_fp_tensor_constructor(function: Callable[..., Any], target_dtype: torch.dtype) -> Callable[..., Any]:
    """`function` with its floating results in `target_dtype`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return made.to(target_dtype) if made.is_floating_point() else made

    return wrapped

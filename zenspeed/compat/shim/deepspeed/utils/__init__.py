"""Whole weights and gradients, leaf modules, logging."""

from typing import Any

from zenspeed.compat import utils as _real


def __getattr__(name: str) -> Any:
    return getattr(_real, name)

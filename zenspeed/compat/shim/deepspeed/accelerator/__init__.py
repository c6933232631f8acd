"""The device."""

from typing import Any

from zenspeed.compat import accelerator as _real


def __getattr__(name: str) -> Any:
    return getattr(_real, name)

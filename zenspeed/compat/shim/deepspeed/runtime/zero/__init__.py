"""Parameters that are cut over ranks."""

from typing import Any

from zenspeed.compat import zero as _real


def __getattr__(name: str) -> Any:
    return getattr(_real, name)

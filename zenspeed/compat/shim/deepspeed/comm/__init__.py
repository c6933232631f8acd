"""torch.distributed, as scripts know it."""

from typing import Any

from zenspeed.compat import comm as _real


def __getattr__(name: str) -> Any:
    return getattr(_real, name)

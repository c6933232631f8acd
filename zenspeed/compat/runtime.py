"""`runtime.*` by the names scripts use: schedules, the engine, memory reports."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "lr_schedules": "zenspeed.compat.lr_schedules",
    "engine": "zenspeed.compat.engine",
    "utils": "zenspeed.compat.memory",
    "zero": "zenspeed.compat.zero",
    "activation_checkpointing": "zenspeed.compat.checkpointing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"zenspeed.runtime has no {name!r}; there are {', '.join(_MODULES)}")
    return importlib.import_module(_MODULES[name])

"""zenspeed: train a language model and put it to use.

The calls of the doors (`train` and `Recipe`; `initialize` and what belongs to it) are attributes that load on first use, so
that `import zenspeed` takes no time and needs no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# attribute -> module, and its name there; None: the module itself
_LAZY: dict[str, tuple[str, str | None]] = {
    "train": ("zenspeed.server.run", "train"),
    "Recipe": ("zenspeed.recipe", "Recipe"),
    "open_run": ("zenspeed.run", "open_run"),
    "initialize": ("zenspeed.compat.deepspeed", "initialize"),
    "init_distributed": ("zenspeed.compat.deepspeed", "init_distributed"),
    "add_config_arguments": ("zenspeed.compat.deepspeed", "add_config_arguments"),
    "EngineArgs": ("zenspeed.compat.deepspeed", "EngineArgs"),
    "DeepSpeedEngine": ("zenspeed.compat.engine", "DeepSpeedEngine"),
    "zero": ("zenspeed.compat.zero", None),
    "utils": ("zenspeed.compat.utils", None),
    "comm": ("zenspeed.compat.comm", None),
    "checkpointing": ("zenspeed.compat.checkpointing", None),
    "runtime": ("zenspeed.compat.runtime", None),
    "zero_to_fp32": ("zenspeed.compat.zero_to_fp32", None),
    "get_model_profile": ("zenspeed.compat.flops", "get_model_profile"),
    "get_accelerator": ("zenspeed.compat.accelerator", "get_accelerator"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'zenspeed' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

"""The config."""

from zenspeed.compat.deepspeed_config import DeepSpeedConfig
from zenspeed.errors import InputError as DeepSpeedConfigError

__all__ = ["DeepSpeedConfig", "DeepSpeedConfigError"]

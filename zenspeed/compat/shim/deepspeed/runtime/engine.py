"""The engine."""

from zenspeed.compat.engine import DeepSpeedEngine

__all__ = ["DeepSpeedEngine"]

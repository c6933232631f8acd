"""Optimizers."""

from zenspeed.compat.ops import DeepSpeedCPULion, FusedLion

__all__ = ["DeepSpeedCPULion", "FusedLion"]

"""Optimizers."""

from zenspeed.compat.ops import DeepSpeedCPUAdam, FusedAdam

__all__ = ["DeepSpeedCPUAdam", "FusedAdam"]

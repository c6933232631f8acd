"""Optimizers."""

from zenspeed.compat.ops import DeepSpeedCPUAdagrad

__all__ = ["DeepSpeedCPUAdagrad"]

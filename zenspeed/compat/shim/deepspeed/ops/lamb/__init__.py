"""Optimizers."""

from zenspeed.compat.ops import FusedLamb

__all__ = ["FusedLamb"]

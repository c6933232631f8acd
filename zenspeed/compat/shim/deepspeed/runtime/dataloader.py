"""Loaders."""

from zenspeed.compat.data import RepeatingLoader

__all__ = ["RepeatingLoader"]

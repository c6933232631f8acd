"""Memory reports."""

from zenspeed.compat.memory import see_memory_usage

__all__ = ["see_memory_usage"]

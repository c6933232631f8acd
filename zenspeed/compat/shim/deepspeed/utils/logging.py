"""The logger."""

from zenspeed.compat.utils import log_dist, logger

__all__ = ["log_dist", "logger"]

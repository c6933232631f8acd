"""Monitors."""

from zenspeed.compat.monitor import Monitor as MonitorMaster

__all__ = ["MonitorMaster"]

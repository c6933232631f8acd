"""The FLOPs profiler."""

from zenspeed.compat.flops import FlopsProfiler, get_model_profile

__all__ = ["FlopsProfiler", "get_model_profile"]

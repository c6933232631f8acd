"""The FLOPs profiler."""

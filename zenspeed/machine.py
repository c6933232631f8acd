"""What this machine is and what it is fast at, as measured."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil


def keep_memory() -> bool:
    """Makes glibc's allocator keep the memory it has instead of giving it back and faulting it in again every step.

    Worth 1.12-1.18 × a training step on two cores (see docs/LOG.md). Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    # One arena for all threads: those of their own are given back however high the threshold is.
    settings = ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28), (m_arena_max, 1))
    return all(bool(mallopt(*setting)) for setting in settings)


def usable_cores() -> int:
    """Cores this process may run on: affinity and a container's CPU limit count, not what the host has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_age_seconds() -> float:
    """Seconds since this process was started, imports included."""
    return time.time() - psutil.Process().create_time()


def process_began() -> float:
    """When this process was started, on the clock of time.perf_counter."""
    return time.perf_counter() - process_age_seconds()


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    return int(psutil.Process().memory_info().rss)


def measure_matmul(dtype: Any, device: Any, size: int = 1536, repeats: int = 4) -> float:
    """FLOP/s of a square matrix product, the best of a few: the peak that MFU is a share of."""
    import torch

    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def pick_precision(device: Any) -> tuple[str, dict[str, float]]:
    """`bf16` where its products are at least 1.2 × as fast as fp32's, else `fp32`; and both rates in FLOP/s."""
    import torch

    rates = {name: measure_matmul(getattr(torch, t), device, 768, 3) for name, t in (("fp32", "float32"), ("bf16", "bfloat16"))}
    return ("bf16" if rates["bf16"] >= 1.2 * rates["fp32"] else "fp32"), rates


def has_float8(device: Any) -> bool:
    """Whether products in fp8 are faster here than in bf16: an NVIDIA device of compute capability 8.9 or more."""
    import torch

    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def device_name(device: Any) -> str:
    """For people."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type}"


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    import importlib.metadata

    names = ["torch", "numpy", "tokenizers", "safetensors", "zenspeed"]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": {name: importlib.metadata.version(name) for name in names},
    }


def processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

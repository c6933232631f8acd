"""Too little memory: how it is recognised, and the limit that makes it an error of one allocation instead of a killed process.

Linux gives out more memory than there is and ends a process that uses too much of it, without a word. Under a limit on a
process's data the allocation that goes beyond it fails, torch says so, and the training loop takes smaller micro-batches.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from zenspeed.errors import InputError
from zenspeed.machine import resident_bytes

_GIB = 2**30
_SAID = re.compile(r"can't allocate memory|not enough memory|out of memory|std::bad_alloc", re.I)
_KEPT_FREE = 0.05  # of a container's memory, for its other processes and what the kernel counts


class OutOfMemory(Exception):
    """Forward or backward of a micro-batch did not fit, on some rank; every rank gets this, with its gradients forgotten."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's error, that of torch's CPU allocator, or Python's own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def give_back(device_type: str) -> None:
    """After an error: what nobody refers to any more is free for smaller blocks."""
    gc.collect()
    if device_type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def memory_limit(gibibytes: float | None, device: torch.device, local_ranks: int = 1) -> Iterator[None]:
    """Within it this process may use `gibibytes` of its device; None: its share of what the container may use, if that is
    limited (CPU), or all (GPU).

    Raises:
        InputError: the process holds more already.
    """
    if device.type == "cuda":
        if gibibytes is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gibibytes * _GIB / total), device)
        yield
        return
    limit = container_bytes() if gibibytes is None else int(gibibytes * _GIB)
    data = _data_bytes()
    if limit is None or data is None:
        if gibibytes is not None:
            raise InputError("train.memory: this system cannot limit the memory of a process (Linux can); take it away")
        yield
        return
    import resource

    if gibibytes is None:
        limit = int(limit * (1 - _KEPT_FREE)) // local_ranks
    held = resident_bytes()
    if held >= limit:
        if gibibytes is None:  # a small container is no reason to refuse: the kernel decides
            yield
            return
        raise InputError(f"train.memory: {gibibytes:g} GiB, but the process holds {held / _GIB:.2f} before training; give more")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + limit - held
    soft = wanted if before[0] == resource.RLIM_INFINITY else min(wanted, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def container_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The memory that this process's control group may use, the least of all groups it lies in; None: there is no limit."""
    limits = []
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / path.strip("/")
        for folder in [group, *group.parents]:
            if folder != base and base not in folder.parents:
                break
            if (text := _read(folder / name)).isdigit():
                limits.append(int(text))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    least = min(limits, default=machine)
    return least if least < machine else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _data_bytes() -> int | None:
    """What Linux holds against the limit: private memory that may be written, used or not."""
    found = re.search(r"^VmData:\s+(\d+) kB", _read(Path("/proc/self/status")), re.M)
    return None if found is None else int(found[1]) * 1024

"""Too little memory: how it is recognised, and the limit that makes it an error of one allocation instead of a killed process.

Linux gives out more memory than there is and ends a process that uses too much of it, without a word. Under a limit on a
process's data the allocation that goes beyond it fails, torch says so, and the training loop takes smaller micro-batches.
"""

from __future__ import annotations

import gc
import os
import re
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


class MemoryLimit:
    """While it is entered, this process may use `gibibytes` of its device; None: its share of what the container may use, if
    that is limited (CPU), or all (GPU).

    It is entered for updates and evaluations: what else goes on, such as starting a thread, is not to fail by it. What is
    known beforehand to be needed later, a copy for a checkpoint, is asked of `check`.

    Raises:
        InputError: the process holds more already.
    """

    def __init__(self, gibibytes: float | None, device: torch.device, local_ranks: int = 1) -> None:
        self._soft: int | None = None
        self._given, self._held = gibibytes, 0
        self._limit: int | None = None
        if device.type == "cuda":
            if gibibytes is not None:
                total = torch.cuda.get_device_properties(device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, gibibytes * _GIB / total), device)
            return
        limit, data, held = container_bytes(), _data_bytes(), resident_bytes()
        if gibibytes is not None:
            limit = int(gibibytes * _GIB)
            if data is None:
                raise InputError("train.memory: this system cannot limit the memory of a process (Linux can); take it away")
            if held >= limit:
                had = f"{held / _GIB:.2f}"
                raise InputError(f"train.memory: {gibibytes:g} GiB, but the process holds {had} before training; give more")
        elif limit is not None:
            limit = int(limit * (1 - _KEPT_FREE)) // local_ranks
        self._limit, self._held = limit, held
        if limit is not None and data is not None and held < limit:  # a small container is no reason to refuse
            self._soft = data + limit - held

    def check(self, more: float, what: str) -> str | None:
        """Of `more` bytes that will be needed for `what`, beside all that the process holds when this was made.

        Returns:
            What is to be said where they are more than a container has: it may be that other processes leave their share.

        Raises:
            InputError: they are more than the user allowed.
        """
        if self._limit is None or self._held + more <= self._limit:
            return None
        need, have = (self._held + more) / _GIB, self._limit / _GIB
        said = f"{need:.2f} GiB are needed for {what}, {have:.2f} are there"
        if self._given is not None:
            raise InputError(
                f"train.memory: {said}; give {need * 1.1:.2g} or more, take more ranks with ZeRO, or a smaller model"
            )
        return f"memory: {said} in this container: the run may be ended without a word; take a smaller model"

    def __enter__(self) -> None:
        if self._soft is not None:
            import resource

            self._before = resource.getrlimit(resource.RLIMIT_DATA)
            soft, hard = self._before
            wanted = self._soft if soft == resource.RLIM_INFINITY else min(self._soft, soft)
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))

    def __exit__(self, *exception: object) -> None:
        if self._soft is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, self._before)


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

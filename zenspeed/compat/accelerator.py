"""`get_accelerator()`: the device of this process, over torch.accelerator; a machine without one is `cpu`."""

from __future__ import annotations

import os
import resource
from functools import lru_cache
from typing import Any

import psutil
import torch

from zenspeed.parallel.mesh import pick_device


class Accelerator:
    """Answers what scripts ask. Memory of a CPU is that of this process, in bytes."""

    def __init__(self) -> None:
        self._type = pick_device(0).type

    @property
    def _cpu(self) -> bool:
        return self._type == "cpu"

    def device_name(self, device_index: int | None = None) -> str:
        return self._type if self._cpu or device_index is None else f"{self._type}:{device_index}"

    def current_device(self) -> int:
        return 0 if self._cpu else torch.accelerator.current_device_index()

    def current_device_name(self) -> str:
        return self.device_name(self.current_device())

    def device(self, device_index: int | None = None) -> torch.device:
        return torch.device(self.device_name(device_index))

    def device_count(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self._cpu else torch.accelerator.device_count()

    def set_device(self, device_index: int) -> None:
        if not self._cpu:
            torch.accelerator.set_device_index(device_index)

    def is_available(self) -> bool:
        return True

    def is_bf16_supported(self) -> bool:
        return self._type != "cuda" or torch.cuda.is_bf16_supported()

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16] + ([torch.bfloat16] if self.is_bf16_supported() else [])

    def is_synchronized_device(self) -> bool:
        return self._cpu

    def communication_backend_name(self) -> str:
        return "nccl" if self._type == "cuda" else "gloo"

    def get_compile_backend(self) -> str:
        return "inductor"

    def visible_devices_envs(self) -> list[str]:
        return ["CUDA_VISIBLE_DEVICES"]

    def synchronize(self, device_index: int | None = None) -> None:
        if not self._cpu:
            torch.accelerator.synchronize()

    def empty_cache(self) -> None:
        if self._type == "cuda":
            torch.cuda.empty_cache()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return torch.get_rng_state() if self._cpu else torch.cuda.get_rng_state(self.current_device())

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        torch.set_rng_state(new_state) if self._cpu else torch.cuda.set_rng_state(new_state, self.current_device())

    def memory_allocated(self, device_index: int | None = None) -> int:
        return psutil.Process().memory_info().rss if self._cpu else torch.cuda.memory_allocated(device_index)

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        if self._cpu:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # brought up to date now and then only
            return max(peak, self.memory_allocated())
        return torch.cuda.max_memory_allocated(device_index)

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """The peak of a CPU's process is the system's record and cannot be set back."""
        if not self._cpu:
            torch.cuda.reset_peak_memory_stats(device_index)

    reset_max_memory_allocated = reset_peak_memory_stats

    def memory_reserved(self, device_index: int | None = None) -> int:
        return self.memory_allocated() if self._cpu else torch.cuda.memory_reserved(device_index)

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        return self.max_memory_allocated() if self._cpu else torch.cuda.max_memory_reserved(device_index)

    def total_memory(self, device_index: int | None = None) -> int:
        if self._cpu:
            return psutil.virtual_memory().total
        return torch.cuda.get_device_properties(device_index or 0).total_memory

    def available_memory(self, device_index: int | None = None) -> int:
        return psutil.virtual_memory().available if self._cpu else torch.cuda.mem_get_info(device_index)[0]

    def pin_memory(self, tensor: torch.Tensor, align_bytes: int = 1) -> torch.Tensor:
        return tensor if self._cpu else tensor.pin_memory()

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._type

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"get_accelerator() has no {name!r} here")


@lru_cache(maxsize=1)
def get_accelerator() -> Accelerator:
    return Accelerator()

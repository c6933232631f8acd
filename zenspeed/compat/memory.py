"""What the engine holds on this rank, part by part, beside what ZeRO's formula says (Rajbhandari et al. 2020, section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zenspeed.machine import resident_bytes

if TYPE_CHECKING:
    from zenspeed.engine import Engine

PARTS = ("weights", "gradients", "optimizer")


def model_states(core: Engine) -> dict[str, int]:
    """Bytes of weights, gradients, and optimizer (its state and fp32 master weights) that live now; shared memory once."""
    buckets = core.zero.buckets
    seen: set[int] = set()
    weights = _bytes([t for b in buckets for t in (b.weights, b.weight_slice)], seen)
    gradients = _bytes([t for b in buckets for t in (b.gradients, b.grad_slice) if t is not None], seen)
    masters: list[Tensor] = [b.master for b in buckets if b.trainable]
    state = [v for o in core.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor) and v.ndim]
    return {"weights": weights, "gradients": gradients, "optimizer": _bytes([*masters, *state], seen)}


def formula(
    parameters: int, stage: int, ranks: int, weight_bytes: int = 2, gradient_bytes: int = 2, k: int = 12
) -> dict[str, float]:
    """Bytes a rank by part: (2 + 2 + K)Ψ, cut over the ranks as the stage says; K = 12 is Adam's with fp32 master weights."""
    return {
        "weights": weight_bytes * parameters / (ranks if stage >= 3 else 1),
        "gradients": gradient_bytes * parameters / (ranks if stage >= 2 else 1),
        "optimizer": k * parameters / (ranks if stage >= 1 else 1),
    }


def report(core: Engine, rank: int) -> str:
    """One line a part: measured, and by the formula."""
    parameters = sum(slot.size for b in core.zero.buckets for slot in b.slots)
    first = core.zero.buckets[0]
    weight = first.weights.element_size()
    gradient = torch.empty((), dtype=first.grad_dtype).element_size()
    k = (4 if first.master.data_ptr() != first.weight_slice.data_ptr() else 0) + _state_bytes(core)
    held = model_states(core)
    expected = formula(parameters, core.zero.options.stage, first.ranks, weight, gradient, k)
    parts = " | ".join(f"{p} {held[p] / 2**20:.1f} (formula {expected[p] / 2**20:.1f})" for p in PARTS)
    return f"memory (MiB), rank {rank} | {parts} | process {resident_bytes() / 2**20:.0f}"


def see_memory_usage(message: str, force: bool = False, ranks: Any = None) -> None:
    """Prints what this process holds in memory, and the accelerator's share, after `message`; only with `force`."""
    if not force:
        return
    line = f"{message} | process {resident_bytes() / 2**30:.2f} GiB"
    if torch.accelerator.is_available():
        line += f" | {torch.accelerator.current_accelerator()} {torch.accelerator.memory_allocated() / 2**30:.2f} GiB"
    print(line, flush=True)


def _state_bytes(core: Engine) -> int:
    """Bytes of optimizer state for each weight."""
    for optimizer in core.optimizers:
        for parameter, state in optimizer.state.items():
            same = [v for v in state.values() if isinstance(v, Tensor) and v.numel() == parameter.numel() and v.ndim]
            return sum(v.element_size() for v in same)
    return 0


def _bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total

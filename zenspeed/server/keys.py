"""Which server holds which parameters, and vectors of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Key(NamedTuple):
    """A parameter by its name."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def keys_of(module: nn.Module) -> list[Key]:
    """Of all trainable parameters, in the module's order."""
    return [Key(name, tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad]


def divide(keys: Sequence[Key], parts: int) -> list[list[Key]]:
    """Contiguous ranges of `keys`, about equal in size; a parameter is never cut, so a part may be empty."""
    total, before = sum(k.size for k in keys), 0
    out: list[list[Key]] = [[] for _ in range(parts)]
    for key in keys:
        middle = before + key.size / 2  # a parameter belongs where its middle lies
        out[min(parts - 1, int(parts * middle / total))].append(key)
        before += key.size
    return out


def bag_of(keys: Sequence[Key]) -> nn.Module:
    """A module with nothing but these parameters, under the same names, zeros."""
    root = nn.Module()
    for key in keys:
        *path, last = key.name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(last, nn.Parameter(torch.zeros(key.shape)))
    return root


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of `tensors` as one fp32 vector, a copy."""
    return torch.cat([t.detach().reshape(-1).float() for t in tensors]) if tensors else torch.empty(0)


def scatter(vector: Tensor, tensors: Sequence[Tensor]) -> None:
    """Writes what `gather` made back into `tensors`."""
    parts = vector.split([t.numel() for t in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

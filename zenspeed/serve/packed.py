"""Products in bf16 with weights that lie as oneDNN reads them: else it puts them so for every batch, and a short batch is
mostly that. GELU is a part of the product. The operators are those that torch.compile puts into a frozen model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zenspeed.models.layers import FeedForward, Linear

_ALGORITHMS = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activations that a product can end with, and oneDNN's name for how it is computed."""


class PackedLinear(nn.Module):
    """The bf16 product of a trained layer, then `activation` if there is one."""

    def __init__(self, linear: Linear, activation: str | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), None)
        self._bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self._name, self._algorithm = ("none", "") if activation is None else ("gelu", _ALGORITHMS[activation])

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor = product(x.bfloat16(), self._weight, self._bias, self._name, [], self._algorithm)
        return out


class PackedFeedForward(nn.Module):
    """down(gelu(up(x)))"""

    def __init__(self, trained: FeedForward) -> None:
        super().__init__()
        self.up, self.down = PackedLinear(trained.up, trained.activation), PackedLinear(trained.down)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x))
        return out


def can_pack() -> bool:
    """Whether this processor has what the packed product needs."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: nn.Module) -> None:
    """Puts packed layers in the place of those of `module`; those that are not ours stay what they are."""
    for name, child in module.named_children():
        if isinstance(child, FeedForward) and child.activation in _ALGORITHMS:
            setattr(module, name, PackedFeedForward(child))
        elif isinstance(child, Linear):
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)

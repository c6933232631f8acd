"""The first weights of every model, in one table."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from zenspeed.models.presets import ModelConfig


@torch.no_grad()
def draw_weights(
    module: nn.Module,
    config: ModelConfig,
    seed: int | torch.Generator | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Sets all weights of `module`, or those with a name in `only`. Drawn in fp32 on the CPU, so the same seed gives the
    same weights on every device.

    `seed`: a number, a CPU generator, or None for torch's global one. N(s): normal with standard deviation s.

    | parameter                        | zero_out                           | gpt2                 | normal  |
    |----------------------------------|------------------------------------|----------------------|---------|
    | embedding                        | N(1); N(0.02) if it is also head   | N(0.02)              | N(0.02) |
    | position, token_types            | N(0.02)                            | N(0.02)              | N(0.02) |
    | ngrams                           | 0                                  | 0                    | 0       |
    | attention.qkv, feed_forward.up   | N(1/√fan_in)                       | N(0.02)              | N(0.02) |
    | attention.out, feed_forward.down | 0: each block starts as identity   | N(0.02/√(2·layers))  | N(0.02) |
    | head of a language model         | 0: the first loss is ln V          | N(0.02)              | N(0.02) |
    | other heads                      | N(0.02)                            | N(0.02)              | N(0.02) |
    | norm weights / all biases        | 1 / 0                              | 1 / 0                | 1 / 0   |
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    for name, parameter in module.named_parameters():
        if only is not None and name not in only:
            continue
        if name.endswith(("bias", "ngrams.weight")):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1)
        else:
            std = _std(name, parameter.shape, config)
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * std)


def _std(name: str, shape: torch.Size, config: ModelConfig) -> float:
    modern, kind = config.init == "zero_out", name.removesuffix(".weight").rpartition(".")[2]
    if modern:
        if kind == "embedding" and not config.tie_embeddings:
            return 1.0
        if kind in ("out", "down", "head"):
            return 0.0
        if kind in ("qkv", "up"):
            return shape[1] ** -0.5
    if config.init == "gpt2" and kind in ("out", "down"):
        return 0.02 / math.sqrt(2 * config.layers)
    return 0.02

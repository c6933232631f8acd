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

    | parameter                        | zero_out                        | gpt2              | normal  | xavier  | t5          |
    |----------------------------------|---------------------------------|-------------------|---------|---------|-------------|
    | embedding                        | N(1); N(.02) if it is head too  | N(0.02)           | N(0.02) | N(1/√C) | N(1)        |
    | position, token_types            | N(0.02)                         | N(0.02)           | N(0.02) | N(0.02) | N(0.02)     |
    | ngrams, alpha of ReZero          | 0                               | 0                 | 0       | 0       | 0           |
    | queries                          | N(1/√fan_in)                    | N(0.02)           | N(0.02) | X       | N(1/√(C·D)) |
    | keys, values, feed_forward.up    | N(1/√fan_in)                    | N(0.02)           | N(0.02) | X       | N(1/√C)     |
    | attention.out, feed_forward.down | 0: a block starts as identity   | N(.02/√(2·layers))| N(0.02) | X       | N(1/√fan_in)|
    | head of a language model         | 0: the first loss is ln V       | N(0.02)           | N(0.02) | X       | N(1/√C)     |
    | relative bias                    | N(0.02)                         | N(0.02)           | N(0.02) | N(0.02) | N(1/√C)     |
    | other matrices                   | N(0.02)                         | N(0.02)           | N(0.02) | X       | N(0.02)     |

    Always: weights of norms 1, biases 0; recurrent matrices N(1/√(3C)), the variance of torch's own, and 1 for the bias of an
    LSTM's forget gate (Jozefowicz et al. 2015).
    X: uniform in ±√(6 / (fan_in + fan_out)), each of several matrices in one by itself (Glorot & Bengio 2010).
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    for name, parameter in module.named_parameters():
        if only is not None and name not in only:
            continue
        if ".rnn." in name and parameter.ndim == 1:
            parameter.zero_()
            if config.cell == "lstm" and "bias_ih" in name:  # gates are in the order input, forget, cell, output
                parameter[config.width : 2 * config.width] = 1
        elif name.endswith(("bias", "ngrams.weight", "alpha")):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1)
        else:
            kind = name.removesuffix(".weight").rpartition(".")[2]
            if config.init == "xavier" and kind not in ("embedding", "position", "token_types", "relative"):
                noise = torch.rand(parameter.shape, generator=generator, device="cpu") * 2 - 1
                parameter.copy_(noise * _glorot(kind, parameter.shape, config))
            else:
                std = _std(name, kind, parameter.shape, config)
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * std)
            if config.init == "t5" and kind in ("q", "qkv"):
                parameter[: config.heads * config.head_width] *= config.head_width**-0.5


def _glorot(kind: str, shape: torch.Size, config: ModelConfig) -> float:
    parts = {"qkv": shape[0] / (config.heads * config.head_width), "kv": 2, "up": 2 if config.gated else 1}.get(kind, 1)
    return math.sqrt(6 / (shape[0] / parts + shape[1]))


def _std(name: str, kind: str, shape: torch.Size, config: ModelConfig) -> float:
    if ".rnn." in name:
        return (3 * config.width) ** -0.5
    modern, width = config.init == "zero_out", config.width
    if kind == "embedding":
        if config.init == "xavier":
            return width**-0.5
        if config.init == "t5" or (modern and not config.tie_embeddings):
            return 1.0
    if modern and kind in ("out", "down", "head"):
        return 0.0
    if kind in ("qkv", "up", "q", "kv") and (modern or config.init == "t5"):
        return shape[1] ** -0.5
    if config.init == "t5" and kind in ("out", "down", "head", "relative"):
        return width**-0.5 if kind == "relative" else shape[1] ** -0.5
    # With base_width, matrices inside blocks shrink as 1 / √fan_in, as at zero_out they always do.
    hidden = config.width_ratio**-0.5 if kind in ("qkv", "up", "out", "down", "router") else 1.0
    if config.init == "gpt2" and kind in ("out", "down"):
        return hidden * 0.02 / math.sqrt(2 * config.layers)
    return hidden * 0.02

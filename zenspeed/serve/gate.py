"""Before a model is served: does what answers agree with the trained model?

The same probe texts go through the model in torch, its weights rounded as those that serve, and through the core that serves.
Logits are to be within a tolerance, and wherever the likeliest token is clear, it is to be the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from zenspeed.errors import InputError
from zenspeed.serve.core import Core, Feed

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "int8": 2e-2}
"""Of the largest logit's size. bf16 and int8 keep keys and values in bf16, which has 8 bits."""


def check(model: nn.Module, core: Core, weights: str, probes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The outcome, to be shown beside the model.

    Raises:
        InputError: the answers differ; names the probe and the place.
    """
    reference: Any = _rounded(model, weights)
    worst, agreed, count = 0.0, 0, 0
    for number, probe in enumerate(probes):
        tokens = list(probe[: core.context - 1])
        with torch.inference_mode():
            wanted = reference(torch.tensor([tokens]))[0].float().numpy()
        found = _logits(core, tokens)
        size = max(1.0, float(np.abs(wanted).max()))
        error = np.abs(found - wanted).max(axis=1) / size
        worst = max(worst, float(error.max()))
        if not error.max() <= TOLERANCE[weights]:
            place = int((~(error <= TOLERANCE[weights])).argmax())
            raise InputError(
                f"not served: answers differ from the trained model's: probe {number}, token {place} ({tokens[place]}): logits "
                f"differ by {error[place]:.2g} of the largest, allowed is {TOLERANCE[weights]:g}"
            )
        top = np.partition(wanted, -2, axis=1)
        clear = (top[:, -1] - top[:, -2]) > 2 * TOLERANCE[weights] * size
        same = found.argmax(1) == wanted.argmax(1)
        agreed, count = agreed + int(same.sum()), count + len(same)
        if not same[clear].all():
            place = int((clear & ~same).argmax())
            raise InputError(f"not served: the likeliest token behind probe {number}, token {place}, is another one")
    return {"weights": weights, "core": core.kind, "worst_logit": worst, "same_token": agreed / max(1, count), "tokens": count}


def _logits(core: Core, tokens: list[int]) -> np.ndarray:
    """(T, V): behind each token."""
    stream = core.open(tokens, len(tokens))
    assert stream is not None, "nothing else runs yet"
    start = stream.num_read
    assert start == 0, "probes are the first to be read"
    out = [core.step([Feed(stream, 1, True)])[0].copy() for _ in tokens]
    core.close(stream)
    return np.stack(out)


def _rounded(model: nn.Module, weights: str) -> nn.Module:
    if weights == "fp32":
        return model
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim != 2 or name.startswith(("position", "token_types", "ngrams")):
                continue
            if weights == "bf16" or name.startswith("embedding"):
                p.copy_(p.bfloat16().float())
            else:
                scale = p.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
                p.copy_((p / scale).round() * scale)
    return model

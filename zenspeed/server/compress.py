"""Numbers on the wire in fewer bytes, and the memory of what that rounded away.

int8 has one fp32 scale, the largest magnitude / 127, for each block of 256 numbers: 1.016 bytes a number. The error of one
number is then at most half a scale; added to the next message it is not lost (error feedback, Seide et al. 2014, Karimireddy et
al. 1901.09847), so what a server got in all differs from what was meant by one message's rounding, however many there were.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zenspeed.server.wire import as_bytes

Format = Literal["none", "fp16", "int8"]
BLOCK = 256
MAX_FP16 = 65504.0


def num_bytes(count: int, form: Format) -> int:
    """Bytes of `count` numbers."""
    if form == "none":
        return 4 * count
    return 2 * count if form == "fp16" else 4 * -(-count // BLOCK) + count


def encode(values: Tensor, form: Format) -> Tensor:
    """fp32 (N,) as bytes."""
    if form == "none":
        return as_bytes(values)
    if form == "fp16":
        return as_bytes(values.clamp(-MAX_FP16, MAX_FP16).half())
    count = values.numel()
    blocks = torch.nn.functional.pad(values, (0, -count % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1) / 127
    rounded = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().clamp_(-127, 127)
    return torch.cat([as_bytes(scales), as_bytes(rounded.to(torch.int8).view(-1)[:count])])


def decode(data: Tensor, count: int, form: Format) -> Tensor:
    """The fp32 (count,) of `encode`; `data` has `num_bytes(count, form)` bytes."""
    if form == "none":
        return data.view(torch.float32)
    if form == "fp16":
        return data.view(torch.float16).float()
    num_blocks = -(-count // BLOCK)
    scales = data[: 4 * num_blocks].view(torch.float32)
    return data[4 * num_blocks :].view(torch.int8).float().mul_(scales.repeat_interleave(BLOCK)[:count])


class Feedback:
    """Encodes one stream of vectors; what rounding took from one is added to the next."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self.residual: Tensor | None = None

    def encode(self, values: Tensor) -> Tensor:
        if self.form == "none":
            return encode(values, "none")
        meant = values if self.residual is None else values + self.residual
        if not bool(torch.isfinite(meant).all()):  # sent as it is: the server skips the update, the memory stays whole
            return encode(meant, self.form)
        data = encode(meant, self.form)
        self.residual = meant - decode(data, meant.numel(), self.form)
        return data

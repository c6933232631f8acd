"""Gathering and reduce-scattering slices over gloo by messages from rank to rank.

gloo's own all_gather and reduce_scatter go round a ring and copy on the way. Straight messages move the same bytes. Measured
for 14 M numbers between two processes, in ms: all_gather 56 → 13 (fp32), 28 → 9 (bf16); reduce_scatter 65 and all_reduce
35 → 17 (fp32). Sums are made in the order of ranks, so they do not depend on which message comes first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ReduceScatter:
    """Under way: each rank's slice of `whole` is sent to it; `wait` adds what came for this rank into its own slice.

    Holds (ranks - 1) slices of `whole` until then. `whole` must not be written meanwhile.
    """

    def __init__(self, whole: Tensor, group: dist.ProcessGroup) -> None:
        ranks, self._rank = dist.get_process_group_ranks(group), dist.get_rank(group)
        self._slices = list(whole.chunk(len(ranks)))
        self._received = {i: torch.empty_like(self._slices[0]) for i in range(len(ranks)) if i != self._rank}
        ops = [dist.P2POp(dist.irecv, buffer, ranks[i], group) for i, buffer in self._received.items()]
        ops += [dist.P2POp(dist.isend, self._slices[i], ranks[i], group) for i in self._received]
        self._works = dist.batch_isend_irecv(ops)

    def wait(self) -> None:
        for work in self._works:
            work.wait()
        mine = self._slices[self._rank]
        if any(i < self._rank for i in self._received):
            total = self._received[0]
            for i in range(1, len(self._slices)):
                total.add_(mine if i == self._rank else self._received[i])
            mine.copy_(total)
        else:
            for received in self._received.values():
                mine.add_(received)
        self._received = {}


def all_gather(whole: Tensor, mine: Tensor, group: dist.ProcessGroup) -> None:
    """Fills `whole` with every rank's `mine`, in the order of ranks; `mine` may be a part of it."""
    ranks, rank = dist.get_process_group_ranks(group), dist.get_rank(group)
    slices = whole.chunk(len(ranks))
    if slices[rank].data_ptr() != mine.data_ptr():
        slices[rank].copy_(mine)
    others = [i for i in range(len(ranks)) if i != rank]
    ops: list[Any] = [dist.P2POp(dist.irecv, slices[i], ranks[i], group) for i in others]
    ops += [dist.P2POp(dist.isend, slices[rank], ranks[i], group) for i in others]
    for work in dist.batch_isend_irecv(ops):
        work.wait()

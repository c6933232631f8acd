"""Whether copies of the same weights are the same, bit for bit: what computed or kept them wrongly is found and named.

A copy is compared by the sum of its bits taken as integers, one a bucket, so that a check reads the weights once and sends a
few numbers. Only where they differ are the sums of single parameters sent. At stages 0, 1 and 2 every rank has a copy of all
weights; at stage 3 the ranks along `replicate` have copies of a slice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from zenspeed.parallel.zero import ZeroModule

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Difference(NamedTuple):
    """A parameter whose copies differ, and the ranks whose copy is not that of most; all of them, where there is no most."""

    parameter: str
    ranks: tuple[int, ...]


def checksum(tensor: Tensor) -> Tensor:
    """The sum of all elements' bits as integers, modulo 2^64: any single bit that flips changes it."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def compare(zero: ZeroModule) -> list[Difference]:
    """What differs between copies of the weights, the same on all ranks. A collective: all ranks call it together."""
    slices = zero.options.stage == 3
    group = zero.mesh["replicate"].get_group() if slices else None
    copies = [bucket.weight_slice if slices else bucket.weights for bucket in zero.buckets]
    mine = torch.stack([checksum(copy) for copy in copies]) if copies else torch.zeros(1, dtype=torch.int64)
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, dist.ReduceOp.MAX, group=group)
    differ = (low != high).any().long()
    dist.all_reduce(differ, dist.ReduceOp.MAX)  # groups along `replicate` see only their own slices
    return _name(zero, group) if differ.item() else []


def _name(zero: ZeroModule, group: dist.ProcessGroup | None) -> list[Difference]:
    """Which parameters differ, and on which ranks."""
    mine = {key: int(checksum(part)) for key, part in _parts(zero)}
    of_group: list[dict[str, int]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(of_group, mine, group=group)
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    found = [Difference(key, odd) for key in mine if (odd := _odd([sums[key] for sums in of_group], ranks))]
    of_all: list[list[Difference]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_all, found)
    return sorted(Difference(*d) for d in {(name, tuple(odd)) for part in of_all for name, odd in part})


def _parts(zero: ZeroModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and what this rank holds of each."""
    for bucket in zero.buckets:
        if zero.options.stage == 3:
            for piece in bucket.pieces():
                yield piece.name, bucket.weight_slice[piece.offset : piece.offset + piece.stop - piece.start]
        else:
            for slot in bucket.slots:
                yield slot.name, bucket.weights[slot.offset : slot.offset + slot.size]


def _odd(sums: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks whose sum is not that of more than half; all, where there is no such sum."""
    usual, count = Counter(sums).most_common(1)[0]
    if count == len(sums):
        return ()
    return tuple(r for r, s in zip(ranks, sums, strict=True) if s != usual or 2 * count <= len(sums))

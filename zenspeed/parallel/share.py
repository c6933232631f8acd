"""Which samples of a global batch each rank takes, in which micro-batches: any number of ranks, evenly or not.

A batch of 8 over 3 ranks is 2, 3 and 3 samples, in the order in which one process would take them. Every rank makes as many
micro-batches as every other, since stages 2 and 3 meet in each of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """A rank's part of a global batch."""

    first: int
    """Place in the batch of its first sample."""
    sizes: list[int]
    """Samples of each of its micro-batches, which follow one another."""


def share_of(batch_size: int, rank: int, ranks: int, micro_batch_size: int) -> Share:
    """The part of `rank`: at most `micro_batch_size` samples a micro-batch, but 2 where there would be none without.

    The number of ranks must not be above `batch_size`.
    """
    assert 1 <= ranks <= batch_size
    least, most = batch_size // ranks, -(-batch_size // ranks)
    parts = min(least, -(-most // micro_batch_size))  # every micro-batch holds a sample
    first, end = (batch_size * r // ranks for r in (rank, rank + 1))
    count = end - first
    return Share(first, [count * (p + 1) // parts - count * p // parts for p in range(parts)])

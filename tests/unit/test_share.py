"""A global batch is shared by any number of ranks: every sample once, in order, as many micro-batches on each."""

from __future__ import annotations

import itertools

from zenspeed.parallel.share import share_of


def test_every_sample_is_taken_once_in_order_and_all_ranks_meet_equally_often() -> None:
    for batch, ranks, micro in itertools.product(range(1, 18), range(1, 9), range(1, 7)):
        if ranks > batch:
            continue
        shares = [share_of(batch, rank, ranks, micro) for rank in range(ranks)]
        taken = [share.first + i for share in shares for i in range(sum(share.sizes))]
        assert taken == list(range(batch))
        assert len({len(share.sizes) for share in shares}) == 1
        assert all(1 <= size <= max(2, micro) for share in shares for size in share.sizes)
        if batch % (ranks * micro) == 0:
            assert all(share.sizes == [micro] * (batch // ranks // micro) for share in shares)

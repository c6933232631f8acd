"""Which tokens come when: batches for training in an order without state, and the whole of a split for evaluation.

The training order is a pure function of (seed, epoch, position), so it is the same for any number of ranks and
micro-batches, and the number of samples already seen is all that a checkpoint has to keep. No order is ever stored: position
p of an epoch is sent through a pseudo-random permutation of [0, num_samples), a Feistel network that walks its cycle until it
lands inside (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

A sample is a window of T + 1 tokens. The stream is taken as a ring (its last token and its first are both end-of-text, and
are one point of the ring); each epoch cuts it into windows from an offset of its own, so that a document is not always cut at
the same place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from zenspeed.config import InputError
from zenspeed.data.batch import IGNORE, Batch, EvalBatch, batch_of_windows
from zenspeed.data.shards import TokenDataset

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_index(seed: int, epoch: int, position: int, num_samples: int) -> int:
    """Which of `num_samples` samples is at `position` of `epoch`; over all positions each sample comes once."""
    return int(sample_indices(seed, epoch, np.array([position]), num_samples)[0])


def sample_indices(seed: int, epoch: int, positions: np.ndarray, num_samples: int) -> np.ndarray:
    """`sample_index` of each of `positions`, int64."""
    half = max(1, (int(num_samples - 1).bit_length() + 1) // 2)  # bits of each half: at most 4 times too many numbers
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = _keys(seed, epoch)[:_ROUNDS]
    values = np.array(positions, dtype=np.uint64)
    assert values.size == 0 or int(values.max()) < num_samples
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= num_samples
    return values.astype(np.int64)


def _keys(seed: int, epoch: int) -> np.ndarray:
    """Keys of the rounds, and one more for the offset: uint64, a function of seed and epoch only."""
    start = _mix(_mix(np.array([seed & (1 << 64) - 1], dtype=np.uint64)) ^ np.uint64(epoch))
    return _mix(start + np.arange(1, _ROUNDS + 2, dtype=np.uint64) * _GOLDEN)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the result depends on every bit of `x`."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Loader:
    """Training batches, by the number of the sample. Holds no position: the training loop counts samples.

    `num_samples` is the number of samples in an epoch: every target once, but for a rest of fewer than `context` tokens,
    which lies elsewhere in each epoch.
    """

    def __init__(self, dataset: TokenDataset, context: int, seed: int, attend_across_documents: bool, end_of_text: int) -> None:
        """Raises InputError when the stream has no window of context + 1 tokens."""
        self._ring = dataset.num_tokens - 1  # points; the last token is the first again
        self.num_samples = self._ring // context
        if self.num_samples < 1:
            raise InputError(
                f"model.context: {context} tokens are longer than the whole training split, which has {dataset.num_tokens}; "
                f"give --set model.context={max(2, min(context, self._ring // 2))} or more text"
            )
        self._dataset = dataset
        self._context = context
        self._seed = seed
        self._attend_across_documents = attend_across_documents
        self._end_of_text = end_of_text

    def batch(self, first: int, count: int) -> Batch:
        """Samples number `first` to `first + count` - 1 of the endless order; sample n is in epoch n // num_samples.

        A rank that asks for its share of a global batch gets what one process would have got there.
        """
        windows = np.stack([self._window(start) for start in self._starts(first, count)])
        return batch_of_windows(windows, self._end_of_text, self._attend_across_documents)

    def _starts(self, first: int, count: int) -> list[int]:
        """Where on the ring each sample's window begins."""
        numbers = np.arange(first, first + count, dtype=np.int64)
        starts: list[int] = []
        for epoch in range(first // self.num_samples, (first + count - 1) // self.num_samples + 1):
            positions = numbers[numbers // self.num_samples == epoch] - epoch * self.num_samples
            index = sample_indices(self._seed, epoch, positions, self.num_samples)
            offset = int(_keys(self._seed, epoch)[_ROUNDS] % np.uint64(self._context))
            starts += ((index * self._context + offset) % self._ring).tolist()
        return starts

    def _window(self, start: int) -> np.ndarray:
        """(T + 1,) tokens from `start`, going round."""
        stop = start + self._context + 1
        if stop <= self._ring + 1:
            return self._dataset.read(start, stop)
        return np.concatenate([self._dataset.read(start, self._ring), self._dataset.read(0, stop - self._ring)])


def evaluation_batches(
    dataset: TokenDataset,
    context: int,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    attend_across_documents: bool = False,
    overlap: int = 0,
) -> Iterator[EvalBatch]:
    """The whole split in windows, every target exactly once over all ranks.

    Windows overlap by `overlap` tokens, fewer than `context`, and of all but the first only the targets behind these count:
    each is predicted from the `overlap` tokens before it at least (of its document), which costs context / (context - overlap)
    times as much.

    The last window is padded with IGNORE. Every rank gets the same number of batches, since a sharded model's forward is
    collective; a rank that is left without a window at the end gets one in which all is IGNORE. The end-of-text that ends a
    document belongs to that document.
    """
    stride = context - overlap
    num_windows = 1 + max(0, -(-(dataset.num_tokens - 1 - context) // stride))
    starts = dataset.document_starts
    end_of_text = int(dataset.read(0, 1)[0])
    for group in range(0, num_windows, batch_size * ranks):
        first = min(group + rank * batch_size, num_windows)
        count = min(batch_size, num_windows - first)
        rows, begin = max(1, count), first * stride
        end = min(begin + (count - 1) * stride + context + 1, dataset.num_tokens)
        stream = dataset.read(begin, end).astype(np.int64) if count else np.empty(0, np.int64)
        place = np.arange(rows)[:, None] * stride + np.arange(context + 1)  # in the stream
        there = place < len(stream)
        windows = np.full((rows, context + 1), end_of_text, dtype=np.int64)
        windows[there] = stream[place[there]]
        new = (np.arange(context) >= overlap) | (first + np.arange(rows)[:, None] == 0)
        counted = there[:, 1:] & new
        inside = np.full((rows, context), -1)
        inside[counted] = np.searchsorted(starts, begin + place[:, :-1][counted], side="right") - 1
        batch = batch_of_windows(windows, end_of_text, attend_across_documents)
        documents = torch.from_numpy(inside)
        yield EvalBatch(batch._replace(targets=batch.targets.masked_fill(documents < 0, IGNORE)), documents)

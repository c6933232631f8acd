"""Encoded rows of a task, and the order in which training takes them.

The order is a pure function of (seed, epoch, position), like that of language modelling (loader.py), and the same for any
number of ranks: all that a checkpoint keeps of it is how many samples have been read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from zenspeed.data.loader import sample_indices

_BUCKET_BATCHES = 50  # batches sorted by length together: enough to be even, few enough to stay random


class Ragged:
    """Sequences of unequal length in one array."""

    def __init__(self, sequences: Iterable[np.ndarray]) -> None:
        arrays = [np.asarray(s, np.int32) for s in sequences]
        self._hold(np.concatenate(arrays) if arrays else np.empty(0, np.int32), np.array([len(a) for a in arrays], np.int64))

    def _hold(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self.values, self.lengths = values, lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Sequences that lie end to end in `values`, (sum of lengths,) int32."""
        ragged = cls(())
        ragged._hold(values, lengths)
        return ragged

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.starts[index + 1]]

    def digest(self) -> bytes:
        digest = hashlib.sha256(self.values.data)
        digest.update(self.lengths.data)
        return digest.digest()


class EpochOrder:
    """Which example is sample n of the endless order.

    Args:
        lengths: tokens of each example. bucketed: batches of like length, in random order.
        difficulty: of each example; the first epoch then goes from low to high.
    """

    def __init__(
        self, seed: int, lengths: np.ndarray, batch_size: int, *, bucketed: bool = False, difficulty: np.ndarray | None = None
    ) -> None:
        self._seed, self._lengths, self._batch, self._bucketed = seed, lengths, batch_size, bucketed
        self._difficulty, self.num_samples = difficulty, len(lengths)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def take(self, first: int, count: int) -> np.ndarray:
        """Examples of samples `first` … `first + count` - 1, int64."""
        n = self.num_samples
        epochs = range(first // n, (first + count - 1) // n + 1)
        parts = [self._epoch(e)[max(0, first - e * n) : max(0, first + count - e * n)] for e in epochs]
        return np.concatenate(parts)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        order = sample_indices(self._seed, epoch, np.arange(self.num_samples), self.num_samples)
        if self._difficulty is not None and epoch == 0:
            return order[np.argsort(self._difficulty[order], kind="stable")]
        return self._by_length(order, epoch) if self._bucketed else order

    def _by_length(self, order: np.ndarray, epoch: int) -> np.ndarray:
        size = self._batch * _BUCKET_BATCHES
        runs = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([run[np.argsort(self._lengths[run], kind="stable")] for run in runs])
        whole = len(order) // self._batch
        batches = sample_indices(self._seed + 1, epoch, np.arange(whole), whole) if whole else np.empty(0, np.int64)
        moved = order[: whole * self._batch].reshape(whole, self._batch)[batches].reshape(-1)
        return np.concatenate([moved, order[whole * self._batch :]])

"""Lanes: threads of one process that each take a share of the micro-batches, instead of sharing every single operation.

    lane 0   module ─ micro-batches 0, 1 ─ gradients in the buckets ┐
    lane 1   twin   ─ micro-batches 2, 3 ─ gradients of its own ────┴ added in the order of lanes ─ update, all threads

An operation that several threads share ends when its slowest part does, its small ones run on one thread, and so does all
Python between them. Lanes wait for each other once an update. They are data parallelism without a second process: weights are
in memory once, nothing is sent, and the sum is always made in one order. What they cost is a gradient for each lane but the
first. Python's lock matters little, since torch lets go of it inside an operation.

For CPUs, one process, and modules that draw no random numbers: all threads share torch's generator, so dropout would depend
on who comes first.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from zenspeed.parallel.zero import ZeroModule

Batch = TypeVar("Batch")


class Lanes:
    """`count` lanes over a module whose buckets keep whole gradients (stages 0 and 1, one rank). One lane is a plain loop."""

    def __init__(self, zero: ZeroModule, count: int) -> None:
        self.count = count
        assert count == 1 or (zero.options.stage <= 1 and zero.mesh.size() == 1)
        self._buckets = zero.trainable
        self.modules = [zero.module, *(_twin(zero.module) for _ in range(count - 1))]
        self._gradients = [[_own_gradients(zero, twin, i) for i in range(len(self._buckets))] for twin in self.modules[1:]]
        self._pool = ThreadPoolExecutor(count - 1, "lane") if count > 1 else None

    def run(self, work: Callable[[nn.Module, Batch, bool], Tensor], batches: Sequence[Batch]) -> list[Tensor]:
        """`work(module, batch, last)` for every batch, in contiguous shares; `last` is true of the last of a share.

        Returns:
            What `work` gave, in the order of the batches. Gradients of all lanes are in the module's buckets.
        """
        if self._pool is None:
            return _share(work, self.modules[0], batches)
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // self.count))
        cuts = [round(i * len(batches) / self.count) for i in range(self.count + 1)]
        shares = [batches[a:b] for a, b in itertools.pairwise(cuts)]
        try:
            others = [
                self._pool.submit(_on_threads, torch.get_num_threads(), work, twin.train(self.modules[0].training), share)
                for twin, share in zip(self.modules[1:], shares[1:], strict=True)
            ]
            try:
                results = _share(work, self.modules[0], shares[0])
            finally:  # whatever goes wrong here, nobody else writes gradients any more when it is heard of
                waited = [other.exception() for other in others]
            for error in filter(None, waited):
                raise error
        finally:
            torch.set_num_threads(threads)
        for own in self._gradients:
            for bucket, gradients in zip(self._buckets, own, strict=True):
                assert bucket.gradients is not None
                bucket.gradients.add_(gradients)
                gradients.zero_()
        return results + [result for other in others for result in other.result()]


def _on_threads(
    count: int, work: Callable[[nn.Module, Batch, bool], Tensor], module: nn.Module, batches: Sequence[Batch]
) -> list[Tensor]:
    torch.set_num_threads(count)  # a setting of each thread
    return _share(work, module, batches)


def _share(work: Callable[[nn.Module, Batch, bool], Tensor], module: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    return [work(module, batch, index == len(batches) - 1) for index, batch in enumerate(batches)]


def _twin(module: nn.Module) -> nn.Module:
    """The module again, over the same memory of weights and buffers; only gradients are its own."""
    memo: dict[int, Tensor] = {id(b): b for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def _own_gradients(zero: ZeroModule, twin: nn.Module, index: int) -> Tensor:
    """Gradients of a bucket laid out as the bucket lays them, where the twin's parameters find theirs."""
    bucket = zero.trainable[index]
    gradients = torch.zeros(bucket.size, dtype=bucket.grad_dtype, device=bucket.device)
    parameters = dict(twin.named_parameters())
    for slot in bucket.slots:
        parameters[slot.name].grad = gradients[slot.offset : slot.offset + slot.size].view(slot.shape)
    return gradients

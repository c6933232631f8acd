"""Lanes: threads of one process that each take a share of the micro-batches, instead of sharing every single operation.

    lane 0   module ─ micro-batches 0, 1 ─ gradients in the buckets ┐
    lane 1   twin   ─ micro-batches 2, 3 ─ gradients of its own ────┴ added in the order of lanes ─ update, all threads

An operation that several threads share ends when its slowest part does, its small ones run on one thread, and so does all
Python between them. Lanes wait for each other once an update. They are data parallelism without a second process: weights are
in memory once, nothing is sent, and the sum is always made in one order. What they cost is a gradient for each lane but the
first, from its backward pass to the sum. Python's lock matters little, since torch lets go of it inside an operation.

For CPUs and one process. All threads share torch's generator, so what draws from it would depend on who comes first: modules
that draw have an attribute `generator`, which each lane sets for itself and seeds anew for every micro-batch.
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
Work = Callable[[nn.Module, Batch, bool], Tensor]


class Lanes:
    """`count` lanes over a module whose buckets keep whole gradients (stages 0 and 1, one rank). One lane is a plain loop."""

    def __init__(self, zero: ZeroModule, count: int) -> None:
        assert count == 1 or (zero.options.stage <= 1 and zero.mesh.size() == 1)
        self.modules = [zero.module, *(_twin(zero.module) for _ in range(count - 1))]
        self._gradients = [_gradients_to_add(zero, twin) for twin in self.modules[1:]]
        self._generators = [_own_generator(module) for module in self.modules] if count > 1 else []
        self._pool = ThreadPoolExecutor(count - 1, "lane") if count > 1 else None

    def run(self, work: Work[Batch], batches: Sequence[Batch]) -> list[Tensor]:
        """`work(module, batch, last)` for every batch, in contiguous shares; `last` is true of the last of a share.

        Returns:
            What `work` gave, in the order of the batches. Gradients of all lanes are in the module's buckets.
        """
        if self._pool is None:
            return [work(self.modules[0], batch, index == len(batches) - 1) for index, batch in enumerate(batches)]
        seeds = torch.randint(2**62, (len(batches),)).tolist() if any(self._generators) else [0] * len(batches)
        count, threads = len(self.modules), torch.get_num_threads()
        cuts = [round(i * len(batches) / count) for i in range(count + 1)]
        shares = [list(zip(batches, seeds, strict=True))[a:b] for a, b in itertools.pairwise(cuts)]

        def lane(number: int) -> list[Tensor]:
            torch.set_num_threads(max(1, threads // count))  # a setting of each thread
            results, module, generator = [], self.modules[number], self._generators[number]
            for index, (batch, seed) in enumerate(shares[number]):
                if generator is not None:
                    generator.manual_seed(seed)
                results.append(work(module, batch, index == len(shares[number]) - 1))
            return results

        for twin in self.modules[1:]:
            twin.train(self.modules[0].training)
        others = [self._pool.submit(lane, number) for number in range(1, count)]
        try:
            results = lane(0)
        finally:  # whatever goes wrong here, nobody else writes gradients any more when it is heard of
            for other in others:
                other.exception()
            torch.set_num_threads(threads)
        results += [result for other in others for result in other.result()]
        for own in self._gradients:
            made = [(total, p.grad) for total, p in own if p.grad is not None]
            if made:  # lanes can be more than batches
                torch._foreach_add_([total for total, _ in made], [gradient for _, gradient in made])
        self.forget()
        return results

    def forget(self) -> None:
        """Forgets gradients that a lane has made and that were not added up yet."""
        for own in self._gradients:
            for _, parameter in own:
                parameter.grad = None


def _twin(module: nn.Module) -> nn.Module:
    """The module again, over the same memory of weights and buffers; only gradients are its own."""
    memo: dict[int, Tensor] = {id(b): b for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def _gradients_to_add(zero: ZeroModule, twin: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
    """For each parameter of the twin, the place of its gradient in the module's buckets."""
    parameters, found = dict(twin.named_parameters()), []
    for bucket in zero.trainable:
        assert bucket.gradients is not None
        for slot in bucket.slots:
            total = bucket.gradients[slot.offset : slot.offset + slot.size].view(slot.shape)
            found.append((total, parameters[slot.name]))
    return found


def _own_generator(module: nn.Module) -> torch.Generator | None:
    """A generator for all parts of the module that draw; None where there are none."""
    drawing = [part for part in module.modules() if hasattr(part, "generator")]
    generator = torch.Generator() if drawing else None
    for part in drawing:
        part.generator = generator  # type: ignore[assignment]
    return generator

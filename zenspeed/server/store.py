"""What one server holds: its parameters, their optimizer, and the updates that are being put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zenspeed.engine import Engine, Shard
from zenspeed.optim import OptimizerPlan, lr_factor, plan_optimizers
from zenspeed.parallel.zero import Group, NamedParameter, ZeroOptions
from zenspeed.server.compress import decode, num_bytes
from zenspeed.server.keys import Key, bag_of, divide, gather, scatter
from zenspeed.server.messages import Push, Spec
from zenspeed.server.wire import Refused


class Part(NamedTuple):
    """A share as it was brought."""

    head: Push
    data: Tensor  # as on the wire


class Applied(NamedTuple):
    """An update that was made."""

    clock: int
    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    tokens: int
    staleness: list[int]
    """Of each share: updates made since the weights it was computed on."""


class Store:
    """The parameters `keys`, in `spec.fragments` parts of which each is updated on its own."""

    def __init__(self, spec: Spec, keys: Sequence[Key], mesh: DeviceMesh) -> None:
        self.spec = spec
        self.version = spec.first
        self.fragments = divide(keys, spec.fragments)
        self.engines = [_engine(spec, part, mesh) if part else None for part in self.fragments]
        self._parts: dict[int, dict[int, Part]] = {}  # clock -> number -> what was brought
        self._late: set[int] = set()  # asynchronous: clocks that were applied before those below them
        self._base_lr = spec.outer_lr if spec.consistency == "local" else spec.optim.lr

    # Shares -----------------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Updates beyond the version for which shares are taken: what bounds the memory."""
        return 4096 if self.spec.ahead is None else self.spec.ahead + 1

    def expected_bytes(self, clock: int) -> int:
        return num_bytes(self._size(self._fragment(clock)), self.spec.compress)

    def add(self, push: Push, data: Tensor) -> bool:
        """Keeps a share until its update is complete; False: it was there before, or its update is made.

        Raises:
            Refused: of an update that has not begun, a number that does not exist, or of another size.
        """
        if not 0 <= push.number < self.spec.shares:
            raise Refused(f"push: number {push.number}, shares are 0 to {self.spec.shares - 1}")
        if data.numel() != self.expected_bytes(push.clock):
            raise Refused(f"push: {data.numel():,} bytes, expected {self.expected_bytes(push.clock):,}")
        if push.clock < self._floor or push.clock in self._late:
            return False
        if push.clock >= self._floor + self.window or push.version > self.version:
            raise Refused(f"push: clock {push.clock} computed on version {push.version}; the server is at {self.version}")
        parts = self._parts.setdefault(push.clock, {})
        if push.number in parts:
            return False
        parts[push.number] = Part(push, data)
        return True

    def pending(self) -> Iterator[Part]:
        """Shares of updates that are not complete."""
        for parts in self._parts.values():
            yield from parts.values()

    @property
    def _floor(self) -> int:
        """Every update below this clock is made."""
        return self.version - len(self._late)

    # Updates ----------------------------------------------------------------------------------------------------------

    def complete(self) -> int | None:
        """The clock of an update that can be made now, the next in order (asynchronous: any)."""
        candidates = sorted(self._parts) if self.spec.consistency == "asynchronous" else [self.version]
        return next((c for c in candidates if len(self._parts.get(c, ())) == self.spec.shares), None)

    def load_gradient(self, clock: int) -> float | None:
        """Puts an update's gradient into the engine; the square of its norm here."""
        engine = self.engines[self._fragment(clock)]
        parts = self._ordered(clock)
        if engine is None:
            return 0.0
        total_targets = sum(part.head.targets for part in parts)
        total: Tensor | None = None
        for part in parts:
            vector = decode(part.data, self._size(self._fragment(clock)), self.spec.compress)
            divisor = self.spec.shares * part.head.targets
            if divisor != total_targets:
                vector = vector * (divisor / total_targets)
            # The first is copied: what was brought stays as it is, for the journal.
            total = vector.clone() if total is None else total.add_(vector)
        assert total is not None
        engine.zero.zero_grad()
        scatter(total, [_grad(p) for p in engine.module.parameters()])
        square = float(engine.zero.grad_norm()) ** 2
        return square if math.isfinite(square) else None

    def apply(self, clock: int, norm: float | None = None, allow: Callable[[float, float], bool] | None = None) -> Applied:
        """Makes the update whose gradient was loaded.

        `norm`: of the gradient over all servers; None: this is all. `allow`: whether to, by loss and norm.
        """
        fragment = self._fragment(clock)
        engine, parts = self.engines[fragment], self._ordered(clock)
        del self._parts[clock]
        heads = [part.head for part in parts]
        staleness = [self.version - head.version for head in heads]
        factor, loss = self._factor(heads[0], max(staleness)), self._loss(heads)
        if engine is not None:
            engine.set_lr(factor)
            update = engine.update(norm=norm, allow=None if allow is None else lambda norm: allow(loss, norm))
            norm, skipped = update.grad_norm, update.skipped
        else:
            skipped = allow is not None and not allow(loss, norm or 0.0)
        self.version += 1
        self._late.add(clock)
        while (floor := self.version - len(self._late)) in self._late:
            self._late.discard(floor)
        tokens = sum(head.tokens for head in heads)
        return Applied(clock, loss, norm or 0.0, self._base_lr * factor, skipped, tokens, staleness)

    def _loss(self, heads: Sequence[Push]) -> float:
        """Mean over all targets of an update."""
        if any(head.loss is None for head in heads):
            return math.nan
        total_targets = sum(h.targets for h in heads)
        return float(torch.tensor([(h.loss or 0.0) * (self.spec.shares * h.targets / total_targets) for h in heads]).sum())

    def _factor(self, head: Push, staleness: int) -> float:
        if self.spec.consistency == "local":
            return 1.0
        factor = lr_factor(self.spec.optim, head.progress, head.clock, self.spec.steps)
        if self.spec.consistency == "asynchronous":
            factor /= max(1, staleness)  # Zhang et al. 2016, eq. 6
        return factor

    def _ordered(self, clock: int) -> list[Part]:
        return [part for _, part in sorted(self._parts[clock].items())]

    def _fragment(self, clock: int) -> int:
        return clock % self.spec.fragments

    def _size(self, fragment: int) -> int:
        return sum(key.size for key in self.fragments[fragment])

    # Weights and state ------------------------------------------------------------------------------------------------

    def changed_since(self, version: int) -> list[int]:
        """Fragments that were updated after `version`; -1: all."""
        if version < 0 or self.version - version >= self.spec.fragments:
            return list(range(self.spec.fragments))
        return sorted({self._fragment(clock) for clock in range(version, self.version)})

    def weights(self, fragments: Iterable[int]) -> Tensor:
        return gather([p for f in fragments if (engine := self.engines[f]) is not None for p in engine.module.parameters()])

    def shards(self) -> Iterator[Shard]:
        """Weights and optimizer state, as `Engine.shards`."""
        for engine in filter(None, self.engines):
            yield from engine.shards()

    def scalars(self) -> dict[str, dict[str, float]]:
        return {name: values for engine in filter(None, self.engines) for name, values in engine.scalars().items()}

    def load(
        self, read: Callable[[str, str, int, int], Tensor | None], scalars: Mapping[str, dict[str, float]], states: bool
    ) -> None:
        """As `Engine.load`."""
        for engine in filter(None, self.engines):
            engine.load(read, dict(scalars), states)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # a view of the bucket, at stage 0
    return parameter.grad


def _engine(spec: Spec, keys: Sequence[Key], mesh: DeviceMesh) -> Engine:
    bag = bag_of(keys)
    dtype = getattr(torch, spec.compute_dtype)
    plans = [_outer(bag, spec)] if spec.consistency == "local" else plan_optimizers(bag, spec.optim, dtype)
    clip = None if spec.consistency == "local" else spec.clip
    return Engine(bag, plans, mesh, ZeroOptions(stage=0), compute_dtype=dtype, clip=clip)


def _outer(bag: torch.nn.Module, spec: Spec) -> OptimizerPlan:
    """The outer optimizer of DiLoCo: a delta, averaged over workers, is what it takes for a gradient."""
    named = [NamedParameter(name, p) for name, p in bag.named_parameters()]

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=spec.outer_momentum, nesterov=spec.outer_momentum > 0)

    return OptimizerPlan(build, [Group(named, whole=False)], [{"lr": spec.outer_lr}])

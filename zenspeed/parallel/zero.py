"""ZeRO 0-3 as one data structure: the bucket (Rajbhandari et al. 2020, arXiv 1910.02054).

Parameters are laid end to end in buckets; each bucket is cut into one slice per rank of the mesh's `shard` axis:

    weights   |--- a ---|-- b --|------ c ------|pad|      the module's parameters are views of it
    gradients |--- a ---|-- b --|------ c ------|pad|      their .grad as well
    slices    |  rank 0    |  rank 1   |  rank 2    |      fp32 master weights and optimizer state of this rank

A stage only says what is kept whole between uses:

    stage   weights   gradients   optimizer     collectives of a step, per bucket
      0      whole      whole      whole        all_reduce
      1      whole      whole      slice        reduce_scatter at the last micro-batch, all_gather after the update
      2      whole      slice      slice        reduce_scatter at every micro-batch, all_gather after the update
      3      slice      slice      slice        the same, weights gathered around each use and released again

so that memory per parameter with 2-byte weights and gradients and K bytes of optimizer state over N ranks is 4 + K,
4 + K/N, 2 + (2+K)/N and (4+K)/N bytes. Gradients are summed over ranks as soon as a bucket is complete, while backward
goes on. Whoever computes the loss divides it by the global number of targets, so a sum is exact for any layout.

Optimizers that work element by element take slices cut anywhere ("even"); those that need whole matrices (Muon, LAMB)
take buckets in which every slice holds whole parameters ("whole", packed by size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from zenspeed.parallel.exchange import ReduceScatter, all_gather
from zenspeed.parallel.replay import Collectives
from zenspeed.parallel.traffic import Traffic

ALIGN = 16  # elements: 64 bytes in fp32, so that every parameter starts on a cache line


class NamedParameter(NamedTuple):
    name: str
    parameter: nn.Parameter


class Group(NamedTuple):
    """Parameters that one optimizer treats alike. `whole`: it needs whole parameters, not slices cut anywhere."""

    parameters: list[NamedParameter]
    whole: bool


class Piece(NamedTuple):
    """Elements `start` … `stop` of the flattened parameter `name` lie at `offset` of this rank's slice of a bucket."""

    name: str
    shape: torch.Size
    start: int
    stop: int
    offset: int


@dataclass
class Slot:
    """Where a parameter lies in its bucket."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    offset: int

    @property
    def size(self) -> int:
        return self.shape.numel()


@dataclass(frozen=True)
class ZeroOptions:
    stage: int = 0
    grad_dtype: torch.dtype | None = None
    """Type gradients are accumulated in; None: the parameter's own."""
    reduce_dtype: torch.dtype | None = None
    """Type gradients are summed over ranks in; None: the accumulation type."""
    bucket_elements: int = 8_000_000
    """Elements of a bucket at stages 0-2: small enough to overlap with backward, large enough to be one message."""
    master_device: torch.device | None = None
    """Where master weights and optimizer state live; None: with the weights (`cpu` is offload)."""
    weight_device: torch.device | None = None
    """Where the weights' slices live at stage 3; None: with the weights (`cpu` is offload)."""


class Bucket:
    """Some parameters, laid end to end; this rank's slice of them; and how they are reduced and gathered."""

    def __init__(
        self, parameters: Sequence[NamedParameter], whole: bool, mesh: DeviceMesh, options: ZeroOptions, group_index: int
    ) -> None:
        self.options, self.mesh, self.group_index, self.whole = options, mesh, group_index, whole
        self.shard_group, self.replica_group = mesh["shard"].get_group(), mesh["replicate"].get_group()
        self.ranks, self.rank = mesh["shard"].size(), mesh["shard"].get_local_rank()
        self.replicas = mesh["replicate"].size()
        first = parameters[0].parameter
        self.dtype, self.device = first.dtype, first.device
        self.trainable = first.requires_grad
        self.slots, self.slice_size = _lay_out(parameters, whole, self.ranks)
        self.cut = options.stage >= 1
        self.size = self.slice_size * self.ranks
        self.start = self.slice_size * self.rank if self.cut else 0
        self.stop = self.start + self.slice_size if self.cut else self.size
        self.grad_dtype = options.grad_dtype or self.dtype
        self.pending: set[int] = set()
        self.work: list[Any] = []
        self.released = False
        self.reduced = False  # the whole gradients hold sums over ranks already (stages 0 and 1)
        self._reducing: Tensor | None = None
        self.traffic: Traffic | None = None
        """Counts this bucket's collectives, where someone wants to know."""
        self.collectives = Collectives()

        self.weights = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for slot in self.slots:
            self.weights[slot.offset : slot.offset + slot.size].copy_(slot.parameter.detach().reshape(-1))
        dist.broadcast(self.weights, group=dist.group.WORLD, src=0)
        self._point_parameters()
        # The slice that lasts: a view of the whole where that stays, its own memory where it does not (stage 3).
        self.weight_slice = self.weights[self.start : self.stop]
        if options.stage == 3:
            self.weight_slice = self.weight_slice.to(device=options.weight_device or self.device, copy=True)
        self.gradients: Tensor | None = None
        self.grad_slice: Tensor | None = None
        self.master = self._make_master()
        self.zero_grad()

    # What is kept -----------------------------------------------------------------------------------------------------

    def _make_master(self) -> Tensor:
        """fp32 weights that the optimizer updates: the slice itself where it is fp32 already, else a copy."""
        device = self.options.master_device or self.weight_slice.device
        if self.dtype == torch.float32 and device == self.weight_slice.device:
            return self.weight_slice
        return self.weight_slice.to(device=device, dtype=torch.float32, copy=True)

    def _point_parameters(self) -> None:
        for slot in self.slots:
            slot.parameter.data = self.weights[slot.offset : slot.offset + slot.size].view(slot.shape)

    def zero_grad(self) -> None:
        """Forgets all gradients. Whole gradients stay allocated at stages 0 and 1, and .grad stays a view of them."""
        self.pending = {id(slot.parameter) for slot in self.slots}
        self.reduced = False
        if not self.trainable:
            return
        if self.options.stage >= 2:
            self.gradients = None
            for slot in self.slots:
                slot.parameter.grad = None
            if self.grad_slice is None:
                self.grad_slice = torch.zeros(self.slice_size, dtype=self.grad_dtype, device=self.device)
            self.grad_slice.zero_()
            return
        if self.gradients is None:
            self.gradients = torch.zeros(self.size, dtype=self.grad_dtype, device=self.device)
            self.grad_slice = self.gradients[self.start : self.stop]
        self.gradients.zero_()
        for slot in self.slots:
            slot.parameter.grad = self._grad_view(slot) if self.grad_dtype == self.dtype else None

    def _grad_view(self, slot: Slot) -> Tensor:
        assert self.gradients is not None
        return self.gradients[slot.offset : slot.offset + slot.size].view(slot.shape)

    def take_grad(self, slot: Slot) -> None:
        """Moves what autograd left in .grad into the bucket, unless it was written there to begin with."""
        grad = slot.parameter.grad
        if grad is None:
            return
        if self.gradients is None:
            self.gradients = torch.zeros(self.size, dtype=self.grad_dtype, device=self.device)
        view = self._grad_view(slot)
        if grad.data_ptr() != view.data_ptr():
            view.add_(grad)
            in_place = self.options.stage < 2 and self.grad_dtype == self.dtype
            slot.parameter.grad = view if in_place else None

    # Reducing gradients -----------------------------------------------------------------------------------------------

    def start_reduce(self) -> None:
        """Starts summing this bucket's gradients over ranks; `finish_reduce` waits for it."""
        if self.gradients is None or self.ranks * self.replicas == 1:
            return
        # Stage 2 and 3 give the whole gradients back when reduced; a cast copy serves a reduce_dtype.
        whole = self.gradients.to(self.options.reduce_dtype or self.grad_dtype)
        self._reducing = whole
        if self.ranks > 1 and not self.cut:
            self._run("all_reduce", whole, lambda: dist.all_reduce(whole, group=self.shard_group, async_op=True))
        elif self.ranks > 1 and whole.device.type == "cpu":
            self._run("reduce_scatter", whole, lambda: ReduceScatter(whole, self.shard_group))
        elif self.ranks > 1:
            mine = whole[self.start : self.stop]
            self._run(
                "reduce_scatter", whole, lambda: dist.reduce_scatter_single(mine, whole, group=self.shard_group, async_op=True)
            )

    def _run(self, op: str, message: Tensor, start: Callable[[], Any]) -> None:
        """Starts a collective over the shard group; `finish_reduce` waits for it, unless traffic is counted."""
        if self.traffic is not None:
            self.traffic.run(op, message, self.ranks, start)
        elif (work := self.collectives.run(start)) is not None:
            self.work.append(work)

    def finish_reduce(self) -> None:
        """Waits for the sum and puts it into `grad_slice`; at stages 2 and 3 the whole gradients are given back."""
        for work in self.work:
            work.wait()
        self.work = []
        whole = self._reducing if self._reducing is not None else self.gradients
        self._reducing = None
        self.pending = {id(slot.parameter) for slot in self.slots}
        if whole is None:
            return
        mine = whole[self.start : self.stop]
        if self.replicas > 1 and self.traffic is None:
            self.collectives.run(lambda: dist.all_reduce(mine, group=self.replica_group))
        elif self.replicas > 1:
            assert self.traffic is not None
            self.traffic.run(
                "all_reduce", mine, self.replicas, lambda: dist.all_reduce(mine, group=self.replica_group, async_op=True)
            )
        assert self.grad_slice is not None
        self.reduced = self.ranks * self.replicas > 1
        if self.options.stage >= 2:
            self.grad_slice.add_(mine)
            self.gradients = None
        elif mine.data_ptr() != self.grad_slice.data_ptr():
            self.grad_slice.copy_(mine)

    def undo_reduce(self) -> None:
        """Before more gradients come after a sum over ranks: parts such that the next sum gives this one again, and theirs."""
        if self.reduced and self.gradients is not None and self.options.stage < 2:
            assert self.grad_slice is not None
            mine = self.grad_slice.clone() if self.cut else self.grad_slice
            if self.cut:
                self.gradients.zero_()
                self.grad_slice.copy_(mine)
            self.grad_slice.div_(self.replicas if self.cut else self.ranks * self.replicas)
        self.reduced = False

    # Weights ----------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """After an update of `master`: writes the slice, and at stages 1 and 2 gathers the whole."""
        if self.master.data_ptr() != self.weight_slice.data_ptr():
            self.weight_slice.copy_(self.master)
        if self.options.stage in (1, 2) and self.ranks > 1:
            self._all_gather(self.weight_slice)
        if self.options.stage == 3 and not self.released:
            self.gather(again=True)

    def _all_gather(self, mine: Tensor) -> None:
        if self.traffic is None:
            self.collectives.run(lambda: self._gather_slices(mine))
        else:
            self.traffic.run("all_gather", self.weights, self.ranks, lambda: self._gather_slices(mine))

    def _gather_slices(self, mine: Tensor) -> None:
        if self.device.type == "cpu":
            all_gather(self.weights, mine, self.shard_group)
        else:
            dist.all_gather_single(self.weights, mine, group=self.shard_group)

    def gather(self, again: bool = False) -> None:
        """Stage 3: makes the whole weights be there."""
        if not (self.released or again):
            return
        if self.released:
            self.weights.untyped_storage().resize_(self.size * self.weights.element_size())
        # Autograd may hold views of this memory from forward: the values come back as they were, so no new version.
        with torch.autograd._unsafe_preserve_version_counter(self.weights):
            if self.ranks > 1:
                self._all_gather(self.weight_slice.to(self.device))
            else:
                self.weights.copy_(self.weight_slice)
        if self.released:
            self._point_parameters()
        self.released = False

    def release(self) -> None:
        """Stage 3: gives the whole weights' memory back; parameters become empty until the next `gather`."""
        if self.released:
            return
        for slot in self.slots:
            slot.parameter.data = torch.empty(0, dtype=self.dtype, device=self.device)
        self.weights.untyped_storage().resize_(0)
        self.released = True

    def scatter(self, source: int = 0) -> None:
        """The whole weights, changed by the user, become the slices and masters again; those of rank `source` count."""
        dist.broadcast(self.weights, group=dist.group.WORLD, src=source)
        mine = self.weights[self.start : self.stop]
        if mine.data_ptr() != self.weight_slice.data_ptr():
            self.weight_slice.copy_(mine)
        if self.master.data_ptr() != self.weight_slice.data_ptr():
            self.master.copy_(self.weight_slice)

    # What this rank owns ----------------------------------------------------------------------------------------------

    def pieces(self) -> Iterator[Piece]:
        """The parts of parameters that lie in this rank's slice."""
        for slot in self.slots:
            start, stop = max(slot.offset, self.start), min(slot.offset + slot.size, self.stop)
            if start < stop:
                yield Piece(slot.name, slot.shape, start - slot.offset, stop - slot.offset, start - self.start)

    def optimizer_tensors(self) -> list[Tensor]:
        """Views of `master` to hand to an optimizer: each whole parameter of the slice, or the slice as one vector."""
        if self.whole:
            return [self.master[p.offset : p.offset + p.shape.numel()].view(p.shape) for p in self.pieces()]
        return [self.master]

    def optimizer_gradients(self) -> list[Tensor]:
        """fp32 gradients, one for each of `optimizer_tensors`, on the same device."""
        assert self.grad_slice is not None
        grad = self.grad_slice.to(device=self.master.device, dtype=torch.float32)
        if self.whole:
            return [grad[p.offset : p.offset + p.shape.numel()].view(p.shape) for p in self.pieces()]
        return [grad]


def _lay_out(parameters: Sequence[NamedParameter], whole: bool, ranks: int) -> tuple[list[Slot], int]:
    """Offsets of the parameters and the size of a slice. `whole`: largest first, each into the emptiest slice."""
    slots = [Slot(p.name, p.parameter, p.parameter.shape, 0) for p in parameters]
    if not whole:
        end = 0
        for slot in slots:
            slot.offset, end = end, end + _round_up(slot.size, ALIGN)
        return slots, _round_up(-(-end // ranks), ALIGN)
    filled, place = [0] * ranks, {}
    for index in sorted(range(len(slots)), key=lambda i: -slots[i].size):
        rank = filled.index(min(filled))
        place[index] = (rank, filled[rank])
        filled[rank] += _round_up(slots[index].size, ALIGN)
    slice_size = max(filled)
    for index, (rank, offset) in place.items():
        slots[index].offset = rank * slice_size + offset
    return slots, slice_size


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class ZeroModule:
    """All buckets of a module, and the hooks that reduce gradients (and, at stage 3, gather and release weights) in time."""

    def __init__(self, module: nn.Module, groups: Sequence[Group], mesh: DeviceMesh, options: ZeroOptions) -> None:
        self.module, self.mesh, self.options = module, mesh, options
        self.reducing: Callable[[], AbstractContextManager[None]] = nullcontext  # around the wait for sums over ranks
        self.sync = True  # reduce in the coming backward; stages 0 and 1 do so only at the last micro-batch
        self._launched = 0
        self._in_backward = False
        self._dirty = False
        self._whole = False  # stage 3: weights stay gathered for now
        units = find_units(module) if options.stage == 3 else []
        unit_of = {id(p): i for i, unit in enumerate(units) for p in unit.parameters()}
        shared = _shared_between(units) | _used_elsewhere(module)
        self._unit_buckets: dict[int, list[Bucket]] = {i: [] for i in range(-1, len(units))}
        everything = [*groups, Group(_frozen(module), False)] if options.stage == 3 else groups
        for index, group in enumerate(everything):
            # Backward reaches the last parameters first, so buckets are filled from the end.
            parameters = list(reversed(group.parameters))
            by_unit: dict[tuple[int, torch.dtype], list[NamedParameter]] = {}
            for item in parameters:
                unit = -1 if id(item.parameter) in shared else unit_of.get(id(item.parameter), -1)
                by_unit.setdefault((unit, item.parameter.dtype), []).append(item)
            for (unit, _), members in by_unit.items():
                limit = None if options.stage == 3 or group.whole else options.bucket_elements
                for part in _split(members, limit):
                    bucket = Bucket(part, group.whole, mesh, options, index)
                    self._unit_buckets[unit].append(bucket)
        # In the order in which backward completes them, for one that waits for its turn stays whole: the last unit first, and
        # last of all the root, which holds the embedding.
        self.buckets = [bucket for unit in (*reversed(range(len(units))), -1) for bucket in self._unit_buckets[unit]]
        for buffer in module.buffers():
            dist.broadcast(buffer, group=dist.group.WORLD, src=0)
        self.collectives = Collectives()
        for bucket in self.buckets:
            bucket.collectives = self.collectives
        self._home = {id(s.parameter): (b, s) for b in self.buckets for s in b.slots}
        for bucket in self.trainable:
            for slot in bucket.slots:
                slot.parameter.register_post_accumulate_grad_hook(self._on_grad)
        if options.stage == 3:
            self._hook_units(units)

    @property
    def trainable(self) -> list[Bucket]:
        return [bucket for bucket in self.buckets if bucket.trainable]

    def bucket_of(self, parameter: Tensor) -> tuple[Bucket, Slot] | None:
        """Where `parameter` lies, or None if it lies nowhere (no optimizer was given it)."""
        return self._home.get(id(parameter))

    # Gradients --------------------------------------------------------------------------------------------------------

    def begin_backward(self) -> None:
        """Call before a backward that is not the first since `zero_grad`; inside backward it also asks for its end.

        A backward inside the backward (reentrant recomputation) then does not look like the end of it.
        """
        if self._in_backward:
            return
        for bucket in self.trainable:
            bucket.undo_reduce()
        if torch._C._current_graph_task_id() != -1:
            self._in_backward = True
            # Runs once when this backward is over, on every path that leads to it (as torch's own FSDP does).
            torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def forget_backward(self) -> None:
        """A backward that ended in an exception did not tell; call where none can be under way."""
        self._in_backward = False

    def _on_grad(self, parameter: Tensor) -> None:
        self.begin_backward()
        bucket, slot = self._home[id(parameter)]
        bucket.take_grad(slot)
        self._dirty = True
        bucket.pending.discard(id(parameter))
        if bucket.pending:
            return
        if self.sync or self.options.stage >= 2:
            self._launch_complete()
        if self.options.stage == 3:
            self._release_done(bucket)

    def _launch_complete(self) -> None:
        # In one fixed order on all ranks, whatever order gradients arrive in: collectives must match.
        buckets = self.trainable
        while self._launched < len(buckets) and not buckets[self._launched].pending:
            self._launch()

    def _launch(self) -> None:
        """Starts the next bucket's sum. At stages 2 and 3 the one before it is waited for and given back whole, so that no more
        than two buckets have whole gradients at a time, however large the model is."""
        buckets = self.trainable
        buckets[self._launched].start_reduce()
        self._launched += 1
        if self.options.stage >= 2 and self._launched > 1:
            with self.reducing():
                buckets[self._launched - 2].finish_reduce()

    def _after_backward(self) -> None:
        self._in_backward = False
        if self.sync or self.options.stage >= 2:
            self._dirty = True  # also where no gradient came: the other ranks wait for this one's zeros
            self.finish_reduce()
        else:
            for bucket in self.trainable:
                bucket.pending = {id(slot.parameter) for slot in bucket.slots}
        if self.options.stage == 3:
            for bucket in self.buckets:
                bucket.release()

    def finish_reduce(self) -> None:
        """Sums what has not been summed yet (parameters that got no gradient included) and waits for all of it."""
        if not self._dirty:
            return
        for bucket in self.trainable[self._launched :]:
            if bucket.gradients is None:  # no gradient here, but other ranks may have one
                bucket.gradients = torch.zeros(bucket.size, dtype=bucket.grad_dtype, device=bucket.device)
            self._launch()
        with self.reducing():
            for bucket in self.trainable:
                bucket.finish_reduce()
        self._launched, self._dirty = 0, False

    def zero_grad(self) -> None:
        for bucket in self.trainable:
            bucket.zero_grad()
        self._launched, self._dirty = 0, False

    def abandon(self) -> None:
        """After a forward or backward that failed: no trace of it is left but gradients, and what is under way."""
        self.forget_backward()
        self._launched, self._dirty = 0, False
        for bucket in self.trainable:
            bucket.pending = {id(slot.parameter) for slot in bucket.slots}
        if self.options.stage == 3:
            for bucket in self.buckets:
                bucket.release()

    def grad_norm(self) -> Tensor:
        """The global 2-norm of the reduced gradients, fp32, equal on all ranks."""
        squares = [_square_sum(b.grad_slice) for b in self.trainable if b.grad_slice is not None]
        total = torch.stack(squares).sum() if squares else torch.zeros(())
        if self.options.stage >= 1 and self.mesh["shard"].size() > 1:
            dist.all_reduce(total, group=self.mesh["shard"].get_group())
        return total.sqrt()

    def scale_gradients(self, factor: Tensor | float) -> None:
        for bucket in self.trainable:
            if bucket.grad_slice is not None:
                bucket.grad_slice.mul_(factor)

    def publish(self) -> None:
        for bucket in self.trainable:
            bucket.publish()

    # Stage 3: weights around each use ---------------------------------------------------------------------------------

    def _hook_units(self, units: Sequence[nn.Module]) -> None:
        for index, unit in [(-1, self.module), *enumerate(units)]:
            buckets = self._unit_buckets[index]
            unit.register_forward_pre_hook(lambda m, a, b=buckets: _gather_all(b))
            unit.register_forward_hook(lambda m, a, out, b=buckets: self._after_forward(b, out), always_call=True)
        for bucket in self.buckets:
            bucket.release()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights are whole on every rank meanwhile, so that one rank alone may use the module, without gradients.

        A collective: all ranks enter and leave together.
        """
        _gather_all(self.buckets)
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
            if self.options.stage == 3:
                for bucket in self.buckets:
                    bucket.release()

    def _after_forward(self, buckets: list[Bucket], output: Any) -> None:
        if self._whole:
            return
        if torch._C._current_graph_task_id() != -1:
            return  # a recomputation inside backward: the weights are needed again at once
        if torch.is_grad_enabled():
            tensors = [t for t in _tensors(output) if t.requires_grad]
            if tensors:
                torch.autograd.graph.register_multi_grad_hook(tensors, lambda grad: _gather_all(buckets), mode="any")
            elif buckets is self._unit_buckets[-1]:
                return  # a loss may still use the root's own weights
        for bucket in buckets:
            bucket.release()

    def _release_done(self, bucket: Bucket) -> None:
        # The root's parameters may be shared by what is still to come; frozen ones have no sign of being done.
        if bucket not in self._unit_buckets[-1]:
            bucket.release()


def _gather_all(buckets: Sequence[Bucket]) -> None:
    for bucket in buckets:
        bucket.gather()


def _square_sum(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).square()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _split(members: list[NamedParameter], limit: int | None) -> Iterator[list[NamedParameter]]:
    part: list[NamedParameter] = []
    size = 0
    for item in members:
        if part and limit is not None and size + item.parameter.numel() > limit:
            yield part
            part, size = [], 0
        part.append(item)
        size += item.parameter.numel()
    if part:
        yield part


def find_units(module: nn.Module) -> list[nn.Module]:
    """The outermost repeated blocks: children of a ModuleList or Sequential. They are gathered and released one at a time."""
    units: list[nn.Module] = []
    for child in module.children():
        if getattr(child, "gather_as_one", False):
            units.append(child)
        elif isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > 1:
            units += [c for c in child if any(True for _ in c.parameters())]
        else:
            units += find_units(child)
    return units


def _shared_between(units: Sequence[nn.Module]) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for unit in units:
        ids = {id(p) for p in unit.parameters()}
        twice |= seen & ids
        seen |= ids
    return twice


def _used_elsewhere(module: nn.Module) -> set[int]:
    """Parameters that a module says it uses though they are another's: its attribute `external_parameters`."""
    return {id(p) for m in module.modules() for p in getattr(m, "external_parameters", ())}


def _frozen(module: nn.Module) -> list[NamedParameter]:
    return [NamedParameter(name, p) for name, p in module.named_parameters() if not p.requires_grad]

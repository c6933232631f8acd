"""The engine: micro-batches in, updated weights out.

    loss of each micro-batch → backward → sum of gradients over ranks → norm, clip → optimizer on this rank's slices → weights

Precision: weights are what the module holds; where that is not fp32, the slices of `parallel/zero.py` keep fp32 masters.
Matrix products run in `compute_dtype` by autocast. With fp16 the loss is scaled so that small gradients do not vanish, and
an update whose gradients are not finite is skipped (Micikevicius et al. 2018, arXiv 1710.03740).

Every loss is a sum divided by the global number of targets, so accumulation, padding and data parallelism are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from zenspeed.memory import OutOfMemory, give_back, is_out_of_memory
from zenspeed.optim import OptimizerPlan
from zenspeed.parallel.lanes import Lanes, Work
from zenspeed.parallel.zero import Bucket, Piece, ZeroModule, ZeroOptions
from zenspeed.scaler import LossScaler


class Update(NamedTuple):
    """What came of one update."""

    grad_norm: float
    """Global 2-norm of the gradient before clipping; not finite when the update was skipped."""
    skipped: bool
    loss_scale: float


class Shard(NamedTuple):
    """Elements `start` … `stop` of the flattened state `kind` of the parameter `name`, as this rank holds them."""

    name: str
    kind: str  # "weight", or a name the optimizer gave, such as "exp_avg"
    shape: torch.Size
    start: int
    stop: int
    tensor: Tensor


class Engine:
    """Trains `module` with `plans` over `mesh`. The module stays an ordinary module, usable between updates."""

    def __init__(
        self,
        module: nn.Module,
        plans: Sequence[OptimizerPlan],
        mesh: DeviceMesh,
        zero: ZeroOptions,
        *,
        compute_dtype: torch.dtype = torch.float32,
        clip: float | None = None,
        scaler: LossScaler | None = None,
        lanes: int = 1,
    ) -> None:
        self.module, self.mesh, self.clip = module, mesh, clip
        self.scaler = scaler or LossScaler()
        self.divisor = 1.0  # gradients are divided by this as well as by the loss scale, for whoever did not divide the loss
        self.updating = False
        """In the middle of an update: an error then leaves a state that is neither the old nor the new one."""
        self.compute_dtype = compute_dtype
        self.device_type = next(module.parameters()).device.type
        self.zero = ZeroModule(module, [g for plan in plans for g in plan.groups], mesh, zero)
        self.lanes = Lanes(self.zero, lanes)
        self.optimizers: list[torch.optim.Optimizer] = []
        self._tensors: list[tuple[Bucket, list[Tensor]]] = []  # of each bucket, what the optimizer updates
        index = 0
        for plan in plans:
            groups = []
            for group, options in zip(plan.groups, plan.options, strict=True):
                params = [p for b in self.zero.trainable if b.group_index == index for p in self._optimizer_params(b)]
                groups.append({"params": params, "base_lr": options["lr"], **options})
                index += 1
                del group
            if plan.always or any(g["params"] for g in groups):
                self.optimizers.append(plan.build(groups))

    def _optimizer_params(self, bucket: Bucket) -> list[Tensor]:
        params: list[Tensor] = [nn.Parameter(t) for t in bucket.optimizer_tensors()]
        self._tensors.append((bucket, params))
        return params

    # One update -------------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.compute_dtype)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of `loss`; `last`: of the last micro-batch before an update, when they are summed over ranks."""
        self.zero.sync = last
        self._scaled(loss).backward()

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scaler.scale if self.scaler.scale != 1.0 else loss

    def update(
        self,
        on_skip: Callable[[], None] | None = None,
        norm: float | None = None,
        allow: Callable[[float], bool] | None = None,
    ) -> Update:
        """Clips, updates the weights, forgets the gradients. Not finite gradients on any rank: no rank updates.

        `on_skip` is called on every rank before the gradients of a skipped update are forgotten. `norm`: the gradient's
        norm, where it is not that of this engine's parameters alone. `allow`: whether to update with this norm, finite or not;
        it must answer alike on all ranks.
        """
        self.zero.finish_reduce()
        scale = self.scaler.scale
        norm = (float(self.zero.grad_norm()) if norm is None else norm) / (scale * self.divisor)
        finite = math.isfinite(norm)
        made = finite if allow is None else allow(norm)
        if made:
            self.updating = True
            factor = 1.0 / (scale * self.divisor)
            if self.clip is not None:
                factor *= min(1.0, self.clip / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
            if factor != 1.0:
                self.zero.scale_gradients(factor)
            self._step_optimizers()
            self.zero.publish()
            self.updating = False
        elif on_skip is not None:
            on_skip()
        self.zero.zero_grad()
        self.scaler.update(overflow=not finite)
        return Update(norm, skipped=not made, loss_scale=scale)

    def _step_optimizers(self) -> None:
        for bucket, params in self._tensors:
            for param, gradient in zip(params, bucket.optimizer_gradients(), strict=True):
                param.grad = gradient
        for optimizer in self.optimizers:
            optimizer.step()
        for _, params in self._tensors:
            for param in params:
                param.grad = None

    def train_step(
        self,
        micro_batches: Sequence[Any],
        loss_sum: Callable[[nn.Module, Any], Tensor],
        num_targets: float,
        lr: float,
        smallest: Callable[[], Any] | None = None,
        allow: Callable[[float, float], bool] | None = None,
    ) -> tuple[float, Update]:
        """One update from this rank's micro-batches.

        Args:
            loss_sum: the summed loss of a micro-batch on the module, in nats.
            num_targets: targets of the whole global batch, over all ranks and micro-batches.
            lr: factor on every optimizer's base rate.
            smallest: gives a micro-batch that surely fits. With several ranks it is what lets them all hear that one of them
                had too little memory; without it that rank fails alone.
            allow: whether to make an update of this loss and this norm of the gradient, asked on every rank.

        Returns:
            The global batch's mean loss per target, and the update.

        Raises:
            OutOfMemory: on every rank, when forward or backward did not fit on one. Weights are as they were, and the update
                can be made again with smaller micro-batches.
        """
        losses, lost = self._gradients(micro_batches, loss_sum, num_targets, smallest if dist.get_world_size() > 1 else None)
        total = torch.stack([losses, losses.new_tensor(float(lost))])
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        if total[1] > 0:
            self._forget()
            raise OutOfMemory
        self.set_lr(lr)
        loss = float(total[0])
        return loss, self.update(allow=None if allow is None else lambda norm: allow(loss, norm))

    def accumulate(
        self, micro_batches: Sequence[Any], loss_sum: Callable[[nn.Module, Any], Tensor], num_targets: float
    ) -> Tensor:
        """Adds the gradients of `loss_sum / num_targets` over this rank's micro-batches; the sum of these losses.

        Raises:
            OutOfMemory: one process, and a micro-batch did not fit.
        """
        losses, lost = self._gradients(micro_batches, loss_sum, num_targets, None)
        if lost:
            self._forget()
            raise OutOfMemory
        return losses

    def _gradients(
        self,
        micro_batches: Sequence[Any],
        loss_sum: Callable[[nn.Module, Any], Tensor],
        num_targets: float,
        smallest: Callable[[], Any] | None,
    ) -> tuple[Tensor, bool]:
        """The sum of the losses, and whether memory was too little: it then says nothing."""

        def one(module: nn.Module, batch: Any, last: bool) -> Tensor:
            with self.autocast():
                loss = loss_sum(module, batch) / num_targets
            if module is self.module:
                self.backward(loss, last=last)
            else:  # a lane of its own: it is not what the ranks wait for
                self._scaled(loss).backward()
            return loss.detach().float()

        return self._run(one, micro_batches, smallest)

    def _run(self, one: Work[Any], micro_batches: Sequence[Any], smallest: Callable[[], Any] | None) -> tuple[Tensor, bool]:
        """`one` for all. A rank that others wait for takes part in all that is left of the step, with the smallest batch."""
        lost = False

        def kept_in_step(module: nn.Module, batch: Any, last: bool) -> Tensor:
            nonlocal lost
            self.zero.collectives.begin()
            if not lost:
                try:
                    return one(module, batch, last)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                lost = True  # outside the handler: what the error refers to is free by now
                self.zero.abandon()
                give_back(self.device_type)
                self.zero.collectives.begin_again()
            assert smallest is not None
            return one(module, smallest(), last)

        try:
            return torch.stack(self.lanes.run(kept_in_step if smallest else one, micro_batches)).sum(), lost
        except Exception as error:
            if smallest is not None or dist.get_world_size() > 1 or not is_out_of_memory(error):
                raise
        return torch.zeros(()), True

    def _forget(self) -> None:
        """After an update that could not be made."""
        self.zero.abandon()
        self.zero.collectives.begin()
        self.zero.zero_grad()
        self.lanes.forget()
        give_back(self.device_type)

    def set_lr(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    # State ------------------------------------------------------------------------------------------------------------

    def shards(self, copies: bool = False) -> Iterator[Shard]:
        """Weights (fp32) and optimizer state that this rank is the one to save: every element comes from one rank only.

        With `copies`, all that this rank holds, whether others hold it as well or not.
        """
        if self.mesh["replicate"].get_local_rank() != 0 and not copies:
            return
        for bucket, params in self._tensors:
            if not bucket.cut and bucket.rank != 0 and not copies:
                continue
            for piece, kind, source in self._piece_states(bucket, params):
                yield Shard(piece.name, kind, piece.shape, piece.start, piece.stop, source)

    def scalars(self) -> dict[str, dict[str, float]]:
        """Optimizer state that is one number a parameter (Adam's step), by parameter and kind."""
        out: dict[str, dict[str, float]] = {}
        for bucket, params in self._tensors:
            for index, piece in enumerate(bucket.pieces()):
                state = self._state_of(params[index] if bucket.whole else params[0])
                out[piece.name] = {k: float(v) for k, v in state.items() if _is_number(v)}
        return out

    def load(
        self,
        read: Callable[[str, str, int, int], Tensor | None],
        scalars: dict[str, dict[str, float]],
        states: bool = True,
    ) -> None:
        """Takes weights and, with `states`, optimizer state from `read(name, kind, start, stop)`, whatever layout they are of.

        `read` gives None for a kind that was not saved (no update had been made yet); a weight it does not give stays.
        """
        for bucket, params in self._tensors:
            if states:
                self._make_state(params)
            for piece, kind, target in self._piece_states(bucket, params):
                if kind != "weight" and not states:
                    continue
                saved = read(piece.name, kind, piece.start, piece.stop)
                if saved is not None:
                    target.copy_(saved.view(target.shape))
                elif kind != "weight":
                    target.zero_()
            if states:
                self._load_scalars(bucket, params, scalars)
        self.zero.publish()

    def _load_scalars(self, bucket: Bucket, params: list[Tensor], scalars: dict[str, dict[str, float]]) -> None:
        for index, piece in enumerate(bucket.pieces()):
            param = params[index] if bucket.whole else params[0]
            state = self._state_of(param)
            for kind, value in scalars.get(piece.name, {}).items():
                state[kind] = torch.tensor(value) if isinstance(state.get(kind), Tensor) else value
            if state and not scalars.get(piece.name) and all(_is_number(v) or not v.any() for v in state.values()):
                for optimizer in self.optimizers:  # nothing was saved: no update had been made
                    optimizer.state.pop(param, None)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        for optimizer in self.optimizers:
            if param in optimizer.state:
                return optimizer.state[param]
        return {}

    def _make_state(self, params: Sequence[Tensor]) -> None:
        """Lets the optimizer make its state as it will: a step of rate zero and gradient zero, from which weights come back."""
        for optimizer in self.optimizers:
            mine = [g for g in optimizer.param_groups if any(p is q for p in params for q in g["params"])]
            if not mine or all(p in optimizer.state for p in params):
                continue
            keep = [(g, g["lr"]) for g in optimizer.param_groups]
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = torch.zeros_like(p)
            for g, _ in keep:
                g["lr"] = 0.0
            optimizer.step()
            for g, lr in keep:
                g["lr"] = lr
            for p, old in zip(params, before, strict=True):
                p.grad = None
                p.detach().copy_(old)

    def _piece_states(self, bucket: Bucket, params: list[Tensor]) -> Iterator[tuple[Piece, str, Tensor]]:
        """(piece, kind, flat view of the state) of everything in this rank's slice of `bucket`."""
        for index, piece in enumerate(bucket.pieces()):
            param = params[index] if bucket.whole else params[0]
            length = piece.stop - piece.start
            start = 0 if bucket.whole else piece.offset
            states = {"weight": param.detach(), **{k: v for k, v in self._state_of(param).items() if _is_elementwise(v)}}
            for kind, tensor in states.items():
                if bucket.whole and tensor.numel() != length:  # a state with its own shape, such as Adafactor's rows
                    own = piece._replace(shape=tensor.shape, start=0, stop=tensor.numel())
                    yield own, kind, tensor.view(-1)
                else:
                    yield piece, kind, tensor.reshape(-1)[start : start + length]


def _is_elementwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)

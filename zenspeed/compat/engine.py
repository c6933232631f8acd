"""DeepSpeed's engine object over ours: the calls of a user's own training loop become micro-batches and updates.

    engine(batch) → loss → engine.backward(loss) or loss.backward() → engine.step() … at every A-th step: one update

The gradient of an update is the mean over data-parallel ranks of the mean over the A micro-batches of accumulation, so the
loss is divided by A × ranks before backward, and gradients are summed. Where the user calls `loss.backward()` himself, the
division is made as gradients arrive at the parameters, and the loss scale of fp16 is applied at the engine's outputs.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.compat import build, diagnose, kernels, zero
from zenspeed.compat.checkpoint_io import CheckpointCalls
from zenspeed.compat.observe import Observer
from zenspeed.compat.optimizer import EngineOptimizer
from zenspeed.compat.queries import Queries
from zenspeed.compat.timers import BACKWARD, FORWARD, STEP
from zenspeed.config import InputError
from zenspeed.engine import Engine
from zenspeed.optim import OptimizerPlan
from zenspeed.parallel.mesh import World
from zenspeed.parallel.zero import _tensors

logger = logging.getLogger("zenspeed")


class DeepSpeedEngine(Queries, CheckpointCalls, nn.Module):
    """Made by `initialize`; see the module's docstring."""

    module: nn.Module
    client_optimizer: Any
    collate_fn: Any

    def __init__(
        self, module: nn.Module, plans: Callable[[nn.Module], list[OptimizerPlan]], config: Any, world: World, mesh_param: Any
    ) -> None:
        super().__init__()
        self._config, self.world = config, world
        self.device, self.local_rank = world.device, world.local_rank
        self.global_rank, self.world_size = world.rank, world.size
        self.dp_world_size = world.size
        self._accumulation = int(config.gradient_accumulation_steps)
        self._micro_batch = int(config.train_micro_batch_size_per_gpu)
        self.micro_steps = self.global_steps = self.global_samples = self.skipped_steps = 0
        self._boundary: bool | None = None
        self._applied, self._warned_zero = False, False
        self._grad_norm: float | None = None
        self._mean_loss: float | None = None  # of the last update, where a monitor wants it
        self._inside = False  # in engine.backward, which scales the loss itself
        self._hold = False  # in no_sync
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._losses: list[tuple[int, Tensor]] = []
        self.last_overflow: str | None = None
        """What the last update that was blocked said: step, micro-batch, module, parameter and value."""
        self.training_dataloader: Any = None
        self.lr_scheduler: Any = None
        self.precision = build.precision(config)
        build.cast(module, self.precision.parameters, world.device)
        self._fast_kernels = kernels.FastKernels()
        self.module = module
        self._start_core(plans(module), mesh_param)
        self.optimizer = EngineOptimizer(self, self.core.optimizers) if self.core.optimizers else None
        self.basic_optimizer = self.core.optimizers[0] if self.core.optimizers else None
        zero.remember(self)
        self.param_names = {p: n for n, p in module.named_parameters()}
        self._observer = Observer(self, config)
        self.monitor, self.timers, self.flops_profiler = (
            self._observer.monitor,
            self._observer.timers,
            self._observer.profiler,
        )

    def _start_core(self, plans: list[OptimizerPlan], mesh_param: Any) -> None:
        config = self._config
        options = build.zero_options(config, self.precision.parameters)
        shapes = {p: p.shape for p in self.module.parameters()}
        core = Engine(
            self.module,
            plans,
            build.mesh_of(config, self.world, mesh_param),
            options,
            compute_dtype=self.precision.autocast or torch.float32,
            clip=config.gradient_clipping or None,
            scaler=self.precision.scaler,
        )
        object.__setattr__(self, "core", core)
        name = [secrets.token_hex(8)]
        dist.broadcast_object_list(name)
        self.meeting_place = name[0]
        homes = {p: core.zero.bucket_of(p) for p in self.module.parameters()}
        for number, (p, home) in enumerate(homes.items()):
            if home is None:  # no optimizer has it, so no bucket made it equal on all ranks
                dist.broadcast(p.data, src=0)
            elif home[0].trainable:
                p.register_hook(self._scale_arriving)
            if options.stage == 3:
                p.ds_id, p.ds_shape, p.ds_numel = number, shapes[p], shapes[p].numel()  # type: ignore[attr-defined]

    # Forward and backward ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:
            self.core.zero.forget_backward()
        args, kwargs = self._cast_inputs(args), self._cast_inputs(kwargs)
        training = torch.is_grad_enabled() and self.module.training
        if training:
            self._calls.append((_detached(args), _detached(kwargs)))
        self._observer.before_forward()
        try:
            with self._observer.time(FORWARD):
                output = self._run(*args, **kwargs)
        finally:
            self._observer.after_forward()
        if torch.is_grad_enabled():
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._enter_backward)
        return output

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with self._autocast(), self._kernels():
            return self.module(*args, **kwargs)

    def _kernels(self) -> AbstractContextManager[Any]:
        wanted = self._config.fast_kernels and not self._observer.counts_flops
        precision = self.precision.autocast or self.precision.parameters
        return self._fast_kernels if wanted and kernels.apply_here(self.module, precision, self.device) else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision.autocast is not None:
            return torch.autocast(self.device.type, self.precision.autocast)
        # An autocast of the caller's would make another precision than the config says.
        on = torch.is_autocast_enabled(self.device.type)
        return torch.autocast(self.device.type, enabled=False) if on else nullcontext()

    def _cast_inputs(self, value: Any) -> Any:
        if not (self._config.fp16.enabled and getattr(self._config.fp16, "auto_cast", False)):
            return value
        return _map(value, lambda t: t.half() if t.is_floating_point() else t)

    @property
    def _loss_factor(self) -> float:
        """What makes a sum over micro-batches and ranks the mean."""
        total = getattr(self._config, "gradient_allreduce_op", "mean") == "sum"
        return 1.0 / (self._accumulation * (1 if total else self.world_size))

    def _enter_backward(self, grad: Tensor) -> Tensor:
        self.core.zero.sync = self.is_gradient_accumulation_boundary() and not self._hold
        self.core.zero.begin_backward()
        scale = 1.0 if self._inside else self.core.scaler.scale
        return grad * scale if scale != 1.0 else grad

    def _scale_arriving(self, grad: Tensor) -> Tensor:
        factor = 1.0 if self._inside else self._loss_factor
        return grad * factor if factor != 1.0 else grad

    def backward(self, loss: Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> Tensor:
        """Adds the gradients of `loss`, the mean loss of one micro-batch on this rank; returns it divided by accumulation.

        Raises:
            InputError: there is no optimizer, or `loss` is not one number.
        """
        if self.optimizer is None:
            raise InputError("engine.backward: no optimizer; give initialize() one, or the config optimizer.type")
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise InputError(f"engine.backward: the loss must be one number with a gradient, this is {what}; take its mean()")
        cut = self._accumulation if scale_wrt_gas else 1
        factor = self._loss_factor * (self._accumulation / cut) * self.core.scaler.scale
        self._losses.append((max(0, len(self._calls) - 1), loss.detach()))
        self.core.zero.sync = self.is_gradient_accumulation_boundary() and not self._hold
        self.core.zero.forget_backward()
        self.core.zero.begin_backward()
        self._inside = True
        try:
            with self._observer.time(BACKWARD):
                (loss.float() * factor).backward(retain_graph=retain_graph)
        finally:
            self._inside = False
        return loss / cut

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of backward inside are not summed over ranks yet (stages 0 and 1; 2 and 3 keep no whole gradients)."""
        if self.zero_optimization_stage() >= 2:
            raise InputError(
                f"no_sync: stage {self.zero_optimization_stage()} sums gradients at every backward; use stage 0 or 1"
            )
        self._hold = True
        try:
            yield
        finally:
            self._hold = False

    # Update -----------------------------------------------------------------------------------------------------------

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """Counts a micro-batch; at the boundary of accumulation clips, updates the weights and steps the schedule."""
        if self.optimizer is None:
            raise InputError("engine.step: no optimizer; give initialize() one, or the config optimizer.type")
        if self._hold:
            raise InputError("engine.step inside no_sync: gradients are not summed there; call it after the block")
        boundary = self.is_gradient_accumulation_boundary()
        self._applied = False
        if boundary:
            self.take_update(lr_kwargs)
            self.global_steps += 1
            self.global_samples += self.train_batch_size()
        self.micro_steps += 1
        if boundary:
            self._observer.after_update(self._mean_loss)

    def take_update(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """One update from the gradients there are; blocked, with the culprit named, where they are not finite."""
        assert self.optimizer is not None
        mean = self._observer.mean_loss([value for _, value in self._losses])
        try:
            with self._observer.time(STEP):
                update = self.core.update(self._explain_overflow)
        finally:
            self._calls, self._losses = [], []
            self._clear_unmanaged()
        self._mean_loss = mean
        self.optimizer.overflow = update.skipped
        self._applied = not update.skipped
        self._grad_norm = float("inf") if update.skipped else update.grad_norm
        if update.skipped:
            self.skipped_steps += 1
        elif self.lr_scheduler is not None:
            self.lr_scheduler.step(**(lr_kwargs or {}))

    def _explain_overflow(self) -> None:
        losses = [(index, float(value)) for index, value in self._losses if not bool(torch.isfinite(value))]
        known = bool(self._losses)  # not where the loop calls loss.backward() itself
        found = diagnose.diagnose(self.module, self.core.zero, self._calls, losses if known else None, self._run)
        self.last_overflow = (
            f"step {self.global_steps + 1} (micro-batch {self.micro_steps + 1}, loss scale {self.core.scaler.scale:g}): "
            f"the update is blocked, the weights stay: {found}"
        )
        if self.global_rank == 0:
            logger.warning(self.last_overflow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients. The engine does so itself after every update, so a loop need not."""
        if self.micro_steps % self._accumulation and self.core.zero._dirty and not self._warned_zero:
            self._warned_zero = True
            logger.warning(
                "zero_grad within accumulation (micro-batch %d of %d) drops the gradients gathered so far; leave it out",
                self.micro_steps % self._accumulation + 1,
                self._accumulation,
            )
        self.core.zero.zero_grad()
        self._clear_unmanaged()

    def _clear_unmanaged(self) -> None:
        for p in self.module.parameters():
            if p.grad is not None and self.core.zero.bucket_of(p) is None:
                p.grad = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Whole weights at every stage, under names that begin with `module.`; at stage 3 all ranks must call it."""
        with self.gathered():
            state = super().state_dict(*args, **kwargs)
            return {k: v.detach().clone() for k, v in state.items()} if self.zero_optimization_stage() == 3 else state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes whole weights, as `state_dict` gives them, into the module and the fp32 masters; all ranks call it.

        Raises:
            InputError: `assign`; the module's parameters are views of the engine's buckets.
        """
        if assign:
            raise InputError("engine.load_state_dict: assign=True would take the parameters out of the engine; leave it out")
        with self.gathered():
            result = super().load_state_dict(state_dict, strict=strict)
            self.refresh_masters()
        return result

    def refresh_masters(self) -> None:
        """The module's weights, changed by hand, become the masters; rank 0's count. All ranks call it, with weights whole."""
        for bucket in self.core.zero.buckets:
            if not bucket.released:
                bucket.scatter()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Stage 3: all weights are whole inside. All ranks enter together."""
        released = [b for b in self.core.zero.buckets if b.released]
        for bucket in released:
            bucket.gather()
        try:
            yield
        finally:
            for bucket in released:
                bucket.release()

    def __getattr__(self, name: str) -> Any:
        """Attributes the engine does not have are the module's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_modules" not in self.__dict__ or "module" not in self.__dict__["_modules"]:
                raise
            module = self.__dict__["_modules"]["module"]
            if not hasattr(module, name):
                raise AttributeError(f"neither the engine nor its module, {type(module).__name__}, has {name!r}") from None
            return getattr(module, name)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: _map(v, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_map(v, function) for v in value)
    return value


def _detached(value: Any) -> Any:
    return _map(value, lambda t: t.detach())

"""What one can ask the engine, and the few settings it takes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from zenspeed.config import InputError
from zenspeed.scaler import DynamicLossScaler

if TYPE_CHECKING:
    from zenspeed.compat.observe import Observer
    from zenspeed.compat.optimizer import EngineOptimizer
    from zenspeed.engine import Engine


class Queries:
    """Questions; nothing here computes."""

    core: Engine
    module: nn.Module
    optimizer: EngineOptimizer | None
    _config: Any
    _accumulation: int
    _micro_batch: int
    _boundary: bool | None
    _grad_norm: float | None
    _applied: bool
    micro_steps: int
    world_size: int
    dp_world_size: int
    global_steps: int
    skipped_steps: int
    global_rank: int
    lr_scheduler: Any
    wait_for_checkpoint: Callable[[], None]
    _observer: Observer

    # Batches ----------------------------------------------------------------------------------------------------------

    def train_batch_size(self) -> int:
        return self._micro_batch * self._accumulation * self.dp_world_size

    def train_micro_batch_size_per_gpu(self) -> int:
        return self._micro_batch

    def gradient_accumulation_steps(self) -> int:
        return self._accumulation

    def get_batch_info(self) -> tuple[int, int, int]:
        """(global batch, micro-batch of a rank, accumulation)."""
        return self.train_batch_size(), self._micro_batch, self._accumulation

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """Changes the number of micro-batches of an update."""
        unit = self._micro_batch * self.dp_world_size
        if train_batch_size <= 0 or train_batch_size % unit:
            raise InputError(
                f"set_train_batch_size: {train_batch_size} is not a multiple of micro-batch × ranks = {self._micro_batch} × "
                f"{self.dp_world_size} = {unit}"
            )
        self._accumulation = train_batch_size // unit

    def set_train_micro_batch_size(self, micro_batch_size: int) -> None:
        """Changes the micro-batch of a rank; the global batch follows."""
        if micro_batch_size <= 0:
            raise InputError(f"set_train_micro_batch_size: {micro_batch_size}; must be 1 or more")
        self._micro_batch = micro_batch_size

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the coming `step` updates the weights."""
        if self._boundary is not None:
            return self._boundary
        return (self.micro_steps + 1) % self._accumulation == 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """From now on every `step` does (or does not) update, until this is called again."""
        self._boundary = bool(is_boundary)

    # Precision and ZeRO -----------------------------------------------------------------------------------------------

    def fp16_enabled(self) -> bool:
        return bool(self._config.fp16.enabled)

    def bfloat16_enabled(self) -> bool:
        return bool(self._config.bf16.enabled)

    def torch_autocast_enabled(self) -> bool:
        return bool(self._config.torch_autocast is not None and self._config.torch_autocast.enabled)

    def loss_scale(self) -> float:
        return self.core.scaler.scale

    def dynamic_loss_scale(self) -> bool:
        return isinstance(self.core.scaler, DynamicLossScaler)

    def zero_optimization(self) -> bool:
        return self.zero_optimization_stage() > 0

    def zero_optimization_stage(self) -> int:
        return self.core.zero.options.stage

    def zero_optimization_partition_gradients(self) -> bool:
        return self.zero_optimization_stage() >= 2

    def zero_optimization_partition_weights(self) -> bool:
        return self.zero_optimization_stage() >= 3

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        """Always: `save_16bit_model` never leaves the weights out."""
        return True

    def gradient_clipping(self) -> float:
        return float(self._config.gradient_clipping or 0.0)

    def steps_per_print(self) -> Any:
        return self._config.steps_per_print

    def wall_clock_breakdown(self) -> bool:
        return bool(self._config.wall_clock_breakdown)

    @property
    def config(self) -> dict[str, Any]:
        """The config as it was given."""
        return self._config.raw

    # What happened ----------------------------------------------------------------------------------------------------

    def get_global_grad_norm(self) -> float | None:
        """2-norm of the last update's mean gradient before clipping; infinite if it was blocked, None before the first."""
        return self._grad_norm

    def was_step_applied(self) -> bool:
        return self._applied

    def get_lr(self) -> list[float]:
        return [float(g["lr"]) for g in self.optimizer.param_groups] if self.optimizer else []

    def get_mom(self) -> list[Any]:
        groups = self.optimizer.param_groups if self.optimizer else []
        return [g.get("betas", g.get("momentum")) for g in groups]

    def compile(self, backend: str = "inductor", compile_kwargs: dict[str, Any] | None = None, schedule: Any = None) -> None:
        """Compiles the module's forward in place by torch.compile, at its first call."""
        if schedule is not None:
            raise InputError("compile: schedule is not supported; leave it out")
        self.module.compile(backend=backend, **(compile_kwargs or {}))

    def destroy(self) -> None:
        """Waits for a save in the background and closes the monitors; process groups stay."""
        self.wait_for_checkpoint()
        self._observer.close()

"""DeepSpeed's learning-rate schedules, with the values of DeepSpeed 0.19.8 step by step, its oddities included.

A schedule is a function of i, the number of steps taken less one; i is −1 at construction, whose rate is used by the first
update, so update k uses the rate of i = k − 2. People's runs depend on these numbers; docs/deepspeed.md lists what is odd
about them. Every class takes any object with `param_groups`; one rate, or a list of one per group.
"""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler as torch_schedules

from zenspeed.config import InputError, nearest

Rates = float | Sequence[float]
BETA_2 = 0.99
"""OneCycle sets the second beta to this, whatever the optimizer had."""


class Schedule(ABC):
    """What the five have in common: `last_batch_iteration` is their whole state."""

    def __init__(self, optimizer: Any, last_batch_iteration: int = -1) -> None:
        if not hasattr(optimizer, "param_groups"):
            raise InputError(f"{type(self).__name__}: optimizer is a {type(optimizer).__name__}, which has no param_groups")
        self.optimizer = optimizer
        self.last_batch_iteration = last_batch_iteration
        self._write()

    @abstractmethod
    def rates(self, i: int) -> list[float]:
        """One learning rate per group after i + 1 steps."""

    def betas(self, i: int) -> tuple[float, float] | None:
        """Adam's betas after i + 1 steps; None leaves them alone."""
        return None

    def step(self, last_batch_iteration: int | None = None) -> None:
        """One step on, or to the step that is given."""
        self.last_batch_iteration = self.last_batch_iteration + 1 if last_batch_iteration is None else last_batch_iteration
        self._write()

    def _write(self) -> None:
        self._last_lr = self.rates(self.last_batch_iteration)
        betas = self.betas(self.last_batch_iteration)
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
            if betas is not None and "betas" in group:
                group["betas"] = betas

    def get_lr(self) -> list[float]:
        return self.rates(self.last_batch_iteration)

    def get_last_lr(self) -> list[float]:
        """The rates that the groups were given last."""
        return self._last_lr

    def state_dict(self) -> dict[str, int]:
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes the state over and writes its rates to the groups."""
        self.last_batch_iteration = state["last_batch_iteration"]
        self._write()

    def _per_group(self, value: Rates, name: str) -> list[float]:
        groups = len(self.optimizer.param_groups)
        if not isinstance(value, Sequence):
            return [value] * groups
        if len(value) != groups:
            raise InputError(f"{type(self).__name__}: {name} has {len(value)} values for {groups} parameter groups")
        return list(value)


class Warmup:
    """The share of the way from the lowest to the highest rate."""

    def __init__(self, steps: int, kind: str, owner: str) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise InputError(f"{owner}: warmup_num_steps must be a positive integer, it is {steps!r}")
        if kind not in ("log", "linear"):
            raise InputError(f"{owner}: warmup_type is {kind!r}; use log or linear")
        self.steps, self.kind = max(2, steps), kind

    def share(self, i: int) -> float:
        if i < 0:
            return 0.0
        if i >= self.steps:
            return 1.0
        return math.log(i + 1) / math.log(self.steps) if self.kind == "log" else i / self.steps


class WarmupLR(Schedule):
    """From `warmup_min_lr` up to `warmup_max_lr` (None: each group's own rate), then constant."""

    def __init__(
        self,
        optimizer: Any,
        warmup_min_lr: Rates = 0.0,
        warmup_max_lr: Rates | None = None,
        warmup_num_steps: int = 1000,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        self.optimizer = optimizer
        self.warmup = Warmup(warmup_num_steps, warmup_type, type(self).__name__)
        own = [group["lr"] for group in optimizer.param_groups]
        self.min_lrs = self._per_group(warmup_min_lr, "warmup_min_lr")
        self.max_lrs = self._per_group(own if warmup_max_lr is None else warmup_max_lr, "warmup_max_lr")
        super().__init__(optimizer, last_batch_iteration)

    def rates(self, i: int) -> list[float]:
        share = self._share(i)
        return [low + (high - low) * share for low, high in zip(self.min_lrs, self.max_lrs, strict=True)]

    def _share(self, i: int) -> float:
        return self.warmup.share(i)


class WarmupDecayLR(WarmupLR):
    """`WarmupLR`, then linearly down to `warmup_min_lr` at `total_num_steps`."""

    def __init__(
        self,
        optimizer: Any,
        total_num_steps: int,
        warmup_min_lr: Rates = 0.0,
        warmup_max_lr: Rates | None = 0.001,
        warmup_num_steps: int = 1000,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        self.total_num_steps = total_num_steps
        super().__init__(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, last_batch_iteration)
        _warn_short(self, total_num_steps, warmup_num_steps)

    def _share(self, i: int) -> float:
        steps, total = self.warmup.steps, self.total_num_steps
        return self.warmup.share(i) if i < steps else max(0.0, (total - i) / max(1.0, total - steps))


class WarmupCosineLR(Schedule):
    """Shares of each group's own rate: up from `warmup_min_ratio`, then down a cosine to `cos_min_ratio`."""

    def __init__(
        self,
        optimizer: Any,
        total_num_steps: int,
        warmup_min_ratio: float = 0.0,
        warmup_num_steps: int = 1000,
        cos_min_ratio: float = 0.0001,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        self.warmup = Warmup(warmup_num_steps, warmup_type, type(self).__name__)
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio, self.cos_min_ratio = warmup_min_ratio, cos_min_ratio
        self.org_lrs = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, last_batch_iteration)
        _warn_short(self, total_num_steps, warmup_num_steps)

    def rates(self, i: int) -> list[float]:
        return [rate * self.get_lr_ratio(i) for rate in self.org_lrs]

    def get_lr_ratio(self, i: int | None = None) -> float:
        """The share of the groups' own rates after i + 1 steps."""
        i = self.last_batch_iteration if i is None else i
        if i < 0:
            return 0.0
        steps = self.warmup.steps
        if i < steps:
            return self.warmup_min_ratio + self.warmup.share(i) * (1.0 - self.warmup_min_ratio)
        progress = min(1.0, (i - steps + 1) / max(1, self.total_num_steps - steps))
        return max(0.0, self.cos_min_ratio + (1.0 - self.cos_min_ratio) * (1.0 + math.cos(math.pi * progress)) / 2.0)


class OneCycle(Schedule):
    """Rate up and down once, Adam's first beta down and up, then decay (Smith 2018, arXiv 1803.09820)."""

    def __init__(
        self,
        optimizer: Any,
        cycle_min_lr: Rates,
        cycle_max_lr: Rates,
        decay_lr_rate: float = 0.0,
        cycle_first_step_size: int = 2000,
        cycle_second_step_size: int | None = None,
        cycle_first_stair_count: int = 0,
        cycle_second_stair_count: int | None = None,
        decay_step_size: int = 0,
        cycle_momentum: bool = True,
        cycle_min_mom: float = 0.8,
        cycle_max_mom: float = 0.9,
        decay_mom_rate: float = 0.0,
        last_batch_iteration: int = -1,
    ) -> None:
        self.optimizer = optimizer
        self.first = float(cycle_first_step_size)
        self.second = self.first if cycle_second_step_size is None else float(cycle_second_step_size)
        if self.first <= 0 or self.second < 0:
            raise InputError(f"OneCycle: cycle_first_step_size {self.first:g} and cycle_second_step_size {self.second:g}"
                             " must be above 0 and not below 0")  # fmt: skip
        self.first_stairs = cycle_first_stair_count
        self.second_stairs = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
        self.min_lrs = self._per_group(cycle_min_lr, "cycle_min_lr")
        self.max_lrs = self._per_group(cycle_max_lr, "cycle_max_lr")
        self.decay_step_size, self.decay_lr_rate, self.decay_mom_rate = decay_step_size, decay_lr_rate, decay_mom_rate
        self.min_mom, self.max_mom = cycle_min_mom, cycle_max_mom
        self.cycle_momentum = cycle_momentum and all("betas" in g for g in optimizer.param_groups)
        if cycle_momentum and not self.cycle_momentum:
            warnings.warn("OneCycle: the optimizer has no betas, so momentum is not cycled", stacklevel=2)
        super().__init__(optimizer, last_batch_iteration)

    def rates(self, i: int) -> list[float]:
        if i < 0:
            return list(self.min_lrs)
        if i >= self.first + self.second:
            return [low / (1.0 + self.decay_lr_rate * self._decay_intervals(i)) for low in self.min_lrs]
        share = self._share(i)
        return [low + (high - low) * share for low, high in zip(self.min_lrs, self.max_lrs, strict=True)]

    def betas(self, i: int) -> tuple[float, float] | None:
        if not self.cycle_momentum:
            return None
        if i < 0:
            return self.min_mom, BETA_2
        if i >= self.first + self.second:
            return self.max_mom * (1.0 + self.decay_mom_rate * self._decay_intervals(i)), BETA_2
        return self.max_mom - (self.max_mom - self.min_mom) * self._share(i), BETA_2

    def get_mom(self) -> list[tuple[float, float]] | None:
        """The betas of each group, or None where they are not cycled."""
        betas = self.betas(self.last_batch_iteration)
        return None if betas is None else [betas] * len(self.min_lrs)

    def _decay_intervals(self, i: int) -> float:
        done = i - (self.first + self.second) + 1
        return done / self.decay_step_size if self.decay_step_size else 0.0

    def _share(self, i: int) -> float:
        """0 at the lowest rate, 1 at the highest; in stairs where they are asked for."""
        total = self.first + self.second
        position = (i + 1) % total
        up = position <= self.first
        share = position / self.first if up else (total - position) / self.second
        stairs = self.first_stairs if up else self.second_stairs
        return math.floor(share * stairs) / stairs if stairs > 0 else share


class LRRangeTest(Schedule):
    """A rate that only grows, to find where training breaks (Smith 2017, arXiv 1506.01186)."""

    def __init__(
        self,
        optimizer: Any,
        lr_range_test_min_lr: Rates = 1e-3,
        lr_range_test_step_size: int = 2000,
        lr_range_test_step_rate: float = 1.0,
        lr_range_test_staircase: bool = False,
        last_batch_iteration: int = -1,
    ) -> None:
        self.optimizer = optimizer
        self.min_lrs = self._per_group(lr_range_test_min_lr, "lr_range_test_min_lr")
        self.step_size, self.step_rate, self.staircase = (
            lr_range_test_step_size,
            lr_range_test_step_rate,
            lr_range_test_staircase,
        )
        super().__init__(optimizer, last_batch_iteration)

    def rates(self, i: int) -> list[float]:
        intervals = (i + 1) / self.step_size
        growth = 1.0 + self.step_rate * (math.floor(intervals) if self.staircase else intervals)
        return [low * growth for low in self.min_lrs]


SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR)
}
VALID_LR_SCHEDULES = list(SCHEDULES)


def build(type: str, params: dict[str, Any] | None, optimizer: Any) -> Any:
    """The schedule `type` names, of this module or of `torch.optim.lr_scheduler`, over `optimizer`.

    Raises:
        InputError: there is none of that name, or it does not take these `params`.
    """
    kind = SCHEDULES.get(type) or _torch_schedule(type)
    if kind is None:
        known = [*SCHEDULES, *(n for n in dir(torch_schedules) if _torch_schedule(n))]
        raise InputError(f"scheduler.type: {type!r} is not a schedule{nearest(type, known)} (known: {', '.join(known)})")
    names = list(inspect.signature(kind).parameters)[1:]
    for name in params or {}:
        if name not in names:
            raise InputError(
                f"scheduler.params.{name}: {type} has no such argument{nearest(name, names)} (it has {', '.join(names)})"
            )
    try:
        return kind(optimizer, **(params or {}))
    except TypeError as error:
        raise InputError(f"scheduler.params: {type}: {str(error).partition('__init__() ')[2] or error}") from None


def _torch_schedule(name: str) -> Any:
    kind = getattr(torch_schedules, name, None)
    is_one = isinstance(kind, _class) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
    return kind if is_one and not name.startswith("_") and name != "LRScheduler" else None


_class = type  # `build` has an argument of that name


def _warn_short(schedule: Schedule, total: int, warmup: int) -> None:
    if total < warmup:
        name = type(schedule).__name__
        warnings.warn(f"{name}: total_num_steps {total} is less than warmup_num_steps {warmup}", stacklevel=3)

"""`zero.*`: the whole parameters of stage 3, for a moment; and hints to the engine about modules.

Where a parameter lies is known to the engine that cut it; it is found through the parameter itself (`find_engine`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.parallel.zero import Bucket

if TYPE_CHECKING:
    from zenspeed.compat.engine import DeepSpeedEngine

_engines: weakref.WeakSet[DeepSpeedEngine] = weakref.WeakSet()


def remember(engine: DeepSpeedEngine) -> None:
    """Lets `find_engine` find the parameters of `engine` while it lives."""
    _engines.add(engine)


def find_engine(parameter: Tensor) -> DeepSpeedEngine | None:
    """The engine that holds `parameter` in its buckets."""
    return next((e for e in _engines if e.core.zero.bucket_of(parameter) is not None), None)


def engines() -> list[DeepSpeedEngine]:
    """All engines that live."""
    return list(_engines)


class Init:
    """Modules made inside will be given to `initialize`, which cuts them. With `enabled=False` it does nothing.

    The module is made whole in memory on every rank, and cut by `initialize`; masters keep the precision it was made in.
    """

    def __init__(self, module: nn.Module | None = None, *args: Any, enabled: bool = True, **options: Any) -> None:
        remote = options.get("remote_device")
        if remote == "nvme":
            raise InputError("zero.Init: remote_device nvme is not supported here; use cpu or none")
        self.module, self.enabled = module, enabled

    def __enter__(self) -> Init:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class GatheredParameters:
    """Inside, the given parameters are whole on every rank; all ranks enter and leave together.

    Args:
        params: one parameter or several; those that are not cut stay as they are.
        modifier_rank: the rank whose changes become everyone's on leaving; None: changes are not kept.
    """

    def __init__(
        self,
        params: Tensor | Iterable[Tensor],
        modifier_rank: int | None = None,
        fwd_module: nn.Module | None = None,
        enabled: bool = True,
    ) -> None:
        given = [params] if isinstance(params, Tensor) else list(params.values() if isinstance(params, dict) else params)
        self.params, self.modifier_rank, self.enabled = given, modifier_rank, enabled
        self._buckets: list[tuple[Bucket, bool, Tensor | None]] = []

    def __enter__(self) -> None:
        if not self.enabled:
            return
        for bucket in _buckets_of(self.params):
            was_released = bucket.released
            bucket.gather()
            # Stage 3 forgets changes by itself; elsewhere the whole weights are what lasts.
            self._buckets.append((bucket, was_released, None))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for bucket, was_released, _ in self._buckets:
            if self.modifier_rank is not None and kind is None:
                bucket.scatter(self.modifier_rank)
            if was_released:
                bucket.release()
        self._buckets = []


def _buckets_of(params: Iterable[Tensor]) -> list[Bucket]:
    """The buckets of `params` in an order that is the same on all ranks, each once."""
    found: dict[int, Bucket] = {}
    for p in params:
        engine = find_engine(p)
        home = engine.core.zero.bucket_of(p) if engine is not None else None
        if home is not None:
            found[id(home[0])] = home[0]
    return list(found.values())


def register_external_parameter(module: nn.Module, parameter: nn.Parameter) -> None:
    """Says before `initialize` that `module` uses `parameter` of another module, so that it is whole there as well.

    Raises:
        InputError: `parameter` is not one, or is cut already.
    """
    if not isinstance(parameter, nn.Parameter):
        raise InputError(f"register_external_parameter: a {type(parameter).__name__}, not a torch.nn.Parameter")
    if find_engine(parameter) is not None:
        raise InputError("register_external_parameter: after initialize(), which has cut the parameters; call it before")
    module.__dict__.setdefault("external_parameters", []).append(parameter)


def unregister_external_parameter(module: nn.Module, parameter: nn.Parameter) -> None:
    """Takes `register_external_parameter` back, before `initialize`."""
    kept = [p for p in module.__dict__.get("external_parameters", []) if p is not parameter]
    module.__dict__["external_parameters"] = kept


def whole(parameter: Tensor, bucket: Bucket, cut: Tensor) -> Tensor:
    """The whole of what `bucket` cuts into slices like `cut` (masters, gradients, states), for one parameter; on all ranks."""
    import torch.distributed as dist

    slot = next(s for s in bucket.slots if s.parameter is parameter)
    flat = cut.detach().reshape(-1).float()
    if bucket.cut and bucket.ranks > 1:
        full = torch.empty(bucket.size, dtype=torch.float32, device=flat.device)
        dist.all_gather_single(full, flat.contiguous(), group=bucket.shard_group)
    else:
        full = flat
    return full[slot.offset : slot.offset + slot.size].view(slot.shape).clone()

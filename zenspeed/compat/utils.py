"""`utils.*`: whole weights, gradients and optimizer state of a parameter at any stage, leaf modules, loaders, logging.

The `safe_*` calls gather over ranks: all ranks call them together, with the same parameter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.compat.data import RepeatingLoader
from zenspeed.compat.zero import find_engine, whole
from zenspeed.config import InputError, nearest
from zenspeed.parallel.zero import Bucket, Slot

__all__ = [
    "RepeatingLoader",
    "get_z3_leaf_modules",
    "log_dist",
    "logger",
    "safe_get_full_fp32_param",
    "safe_get_full_grad",
    "safe_get_full_optimizer_state",
    "safe_get_local_fp32_param",
    "safe_get_local_grad",
    "safe_get_local_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_full_grad",
    "safe_set_full_optimizer_state",
    "safe_set_local_fp32_param",
    "safe_set_local_optimizer_state",
    "set_z3_leaf_module",
    "set_z3_leaf_modules",
    "set_z3_leaf_modules_by_name",
    "set_z3_leaf_modules_by_suffix",
    "unset_z3_leaf_modules",
    "z3_leaf_module",
]  # fmt: skip

logger = logging.getLogger("zenspeed")


def log_dist(message: str, ranks: Sequence[int] | None = None, level: int = logging.INFO) -> None:
    """Logs on the given ranks (-1 among them: all), by default on all."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if not ranks or -1 in ranks or rank in ranks:
        logger.log(level, "[rank %d] %s", rank, message)


# Whole tensors --------------------------------------------------------------------------------------------------------


def safe_get_full_fp32_param(param: nn.Parameter) -> Tensor | None:
    """The fp32 master of `param`, whole; None if no engine holds it."""
    home = _home(param)
    return whole(param, home[0], home[0].master) if home else None


def safe_get_full_grad(param: nn.Parameter) -> Tensor | None:
    """The mean gradient of `param` over ranks, unscaled, whole; after backward and before step. None if no engine holds it."""
    home = _home(param)
    engine = find_engine(param)
    if home is None or engine is None or home[0].grad_slice is None:
        return None
    engine.core.zero.finish_reduce()
    return whole(param, home[0], home[0].grad_slice).div_(engine.core.scaler.scale * engine.core.divisor)


def safe_get_full_optimizer_state(param: nn.Parameter, optim_state_key: str) -> Tensor | None:
    """The state `optim_state_key` (such as exp_avg) of `param`, whole; None before the first update."""
    home = _home(param)
    if home is None:
        return None
    state = _state_slice(home[0], optim_state_key, param)
    return whole(param, home[0], state) if state is not None else None


def safe_set_full_fp32_param(param: nn.Parameter, value: Tensor) -> None:
    """Sets the master of `param` and its copy in the module's precision; every rank gives the same value."""
    bucket, slot = _must_have(param)
    _write(bucket, slot, bucket.master, value)
    bucket.publish()


def safe_set_full_grad(param: nn.Parameter, value: Tensor) -> None:
    """Sets the mean gradient of `param`, for the coming step; every rank gives the same value."""
    bucket, slot = _must_have(param)
    engine = find_engine(param)
    assert engine is not None and bucket.grad_slice is not None
    engine.core.zero.finish_reduce()
    _write(bucket, slot, bucket.grad_slice, value * (engine.core.scaler.scale * engine.core.divisor))


def safe_set_full_optimizer_state(param: nn.Parameter, value: Tensor, optim_state_key: str) -> None:
    """Sets the state `optim_state_key` of `param`; every rank gives the same value."""
    bucket, slot = _must_have(param)
    state = _state_slice(bucket, optim_state_key, param)
    if state is None:
        raise InputError(
            f"safe_set_full_optimizer_state: there is no state {optim_state_key} (before the first update there is none)"
        )
    if bucket.whole:
        raise InputError(
            "safe_set_full_optimizer_state: this optimizer keeps whole parameters; set its state by load_checkpoint"
        )
    _write(bucket, slot, state, value)


def _home(param: Tensor) -> tuple[Bucket, Slot] | None:
    engine = find_engine(param)
    home = engine.core.zero.bucket_of(param) if engine is not None else None
    return home if home is not None and home[0].trainable else None


def _must_have(param: Tensor) -> tuple[Bucket, Slot]:
    home = _home(param)
    if home is None:
        raise InputError(f"a parameter of shape {tuple(param.shape)} that no engine trains; give one of engine.module's")
    return home


def _write(bucket: Bucket, slot: Slot, target: Tensor, value: Tensor) -> None:
    """This rank's elements of `value`, a whole parameter, into `target`, a slice."""
    if value.numel() != slot.size:
        raise InputError(f"{slot.name}: a value of shape {tuple(value.shape)} for a parameter of shape {tuple(slot.shape)}")
    flat = value.detach().reshape(-1)
    for piece in bucket.pieces():
        if piece.name == slot.name:
            length = piece.stop - piece.start
            target[piece.offset : piece.offset + length].copy_(flat[piece.start : piece.stop])


def _state_slice(bucket: Bucket, key: str, param: Tensor) -> Tensor | None:
    """The state of all of this rank's slice of `bucket` as one vector."""
    engine = find_engine(param)
    assert engine is not None
    params = next(tensors for b, tensors in engine.core._tensors if b is bucket)
    if not bucket.whole:
        value = engine.core._state_of(params[0]).get(key)
        return value if isinstance(value, Tensor) and value.ndim > 0 else None
    out = torch.zeros(bucket.master.numel(), device=bucket.master.device)
    found = not params
    for piece, tensor in zip(bucket.pieces(), params, strict=True):
        value = engine.core._state_of(tensor).get(key)
        if isinstance(value, Tensor) and value.numel() == tensor.numel():
            out[piece.offset : piece.offset + tensor.numel()] = value.reshape(-1)
            found = True
    return out if found else None


# This rank's part ------------------------------------------------------------------------------------------------------


def safe_get_local_fp32_param(param: nn.Parameter) -> Tensor | None:
    """This rank's elements of the master of `param`, flat (none at all where its slice has nothing of it)."""
    home = _home(param)
    return _mine(home[0], home[1], home[0].master) if home else None


def safe_get_local_grad(param: nn.Parameter) -> Tensor | None:
    """This rank's elements of the mean gradient of `param`, flat; after backward and before step."""
    home, engine = _home(param), find_engine(param)
    if home is None or engine is None or home[0].grad_slice is None:
        return None
    engine.core.zero.finish_reduce()
    return _mine(home[0], home[1], home[0].grad_slice).float() / (engine.core.scaler.scale * engine.core.divisor)


def safe_get_local_optimizer_state(param: nn.Parameter, optim_state_key: str) -> Tensor | None:
    """This rank's elements of the state `optim_state_key` of `param`, flat; None before the first update."""
    home = _home(param)
    state = _state_slice(home[0], optim_state_key, param) if home else None
    return _mine(home[0], home[1], state) if home and state is not None else None


def safe_set_local_fp32_param(param: nn.Parameter, value: Tensor) -> None:
    """Sets this rank's elements of the master of `param`; all ranks call it, since the weights are gathered afterwards."""
    bucket, slot = _must_have(param)
    _write_mine(bucket, slot, bucket.master, value)
    bucket.publish()


def safe_set_local_optimizer_state(param: nn.Parameter, value: Tensor, optim_state_key: str) -> None:
    """Sets this rank's elements of the state `optim_state_key` of `param`."""
    bucket, slot = _must_have(param)
    state = _state_slice(bucket, optim_state_key, param)
    if state is None or bucket.whole:
        raise InputError(f"safe_set_local_optimizer_state: no state {optim_state_key} in slices; set it by load_checkpoint")
    _write_mine(bucket, slot, state, value)


def _mine(bucket: Bucket, slot: Slot, whole_slice: Tensor) -> Tensor:
    parts = [whole_slice[p.offset : p.offset + p.stop - p.start] for p in bucket.pieces() if p.name == slot.name]
    return parts[0].clone() if parts else whole_slice.new_empty(0)


def _write_mine(bucket: Bucket, slot: Slot, target: Tensor, value: Tensor) -> None:
    for p in bucket.pieces():
        if p.name == slot.name:
            if value.numel() != p.stop - p.start:
                raise InputError(f"{slot.name}: {value.numel()} elements for the {p.stop - p.start} of this rank")
            target[p.offset : p.offset + p.stop - p.start].copy_(value.detach().reshape(-1))


# Leaf modules ---------------------------------------------------------------------------------------------------------


def set_z3_leaf_modules(
    model: nn.Module, leaf_module_classes: Sequence[Any], raise_if_not_found: bool = True
) -> list[nn.Module]:
    """Modules of these classes (types or names) are gathered as one at stage 3; call it before `initialize`."""
    return _mark(model, leaf_module_classes, True, raise_if_not_found)


def set_z3_leaf_modules_by_name(
    model: nn.Module, module_names: Sequence[str], raise_if_not_found: bool = True
) -> tuple[list[nn.Module], list[str]]:
    """Modules of these names in `model` are gathered as one at stage 3; gives them, and the names that are not there."""
    return _mark_where(model, module_names, lambda name, wanted: name == wanted, raise_if_not_found)


def set_z3_leaf_modules_by_suffix(
    model: nn.Module, module_name_suffixes: Sequence[str], raise_if_not_found: bool = True
) -> tuple[list[nn.Module], list[str]]:
    """Modules whose names end so are gathered as one at stage 3; gives them, and the endings that no name has."""
    return _mark_where(model, module_name_suffixes, str.endswith, raise_if_not_found)


def mark_leaf_modules(model: nn.Module, settings: Any) -> None:
    """What the config's section zero_optimization.leaf_module names."""
    if settings.classes:
        set_z3_leaf_modules(model, settings.classes)
    set_z3_leaf_modules_by_name(model, settings.names)
    set_z3_leaf_modules_by_suffix(model, settings.name_suffixes)


def _mark_where(
    model: nn.Module, wanted: Sequence[str], fits: Callable[[str, str], bool], must: bool
) -> tuple[list[nn.Module], list[str]]:
    named = dict(model.named_modules())
    found = [m for name, m in named.items() if name and any(fits(name, w) for w in wanted)]
    missing = [w for w in wanted if not any(fits(name, w) for name in named if name)]
    if missing and must:
        raise InputError(f"leaf modules: the model has no module {missing[0]!r}{nearest(missing[0], named)}")
    for m in found:
        set_z3_leaf_module(m, True)
    return found, missing


def unset_z3_leaf_modules(
    model: nn.Module, leaf_module_classes: Sequence[Any], raise_if_not_found: bool = True
) -> list[nn.Module]:
    return _mark(model, leaf_module_classes, False, raise_if_not_found)


def _mark(model: nn.Module, classes: Sequence[Any], flag: bool, must: bool) -> list[nn.Module]:
    names = {c for c in classes if isinstance(c, str)}
    types = tuple(c for c in classes if isinstance(c, type))

    def is_meant(m: nn.Module) -> bool:
        kind = type(m)
        return isinstance(m, types) or kind.__name__ in names or f"{kind.__module__}.{kind.__qualname__}" in names

    found = [m for m in model.modules() if is_meant(m)]
    if not found and must:
        there = sorted({type(m).__name__ for m in model.modules()})
        raise InputError(f"set_z3_leaf_modules: the model has none of {list(classes)}; it has {', '.join(there)}")
    for m in found:
        set_z3_leaf_module(m, flag)
    return found


def set_z3_leaf_module(model: nn.Module, flag: bool) -> None:
    model.__dict__["gather_as_one"] = flag


def z3_leaf_module(model: nn.Module) -> bool:
    return bool(model.__dict__.get("gather_as_one", False))


def get_z3_leaf_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if z3_leaf_module(m)]


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"zenspeed.utils has no {name!r}; there are {', '.join(__all__)}")

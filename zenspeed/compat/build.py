"""From a DeepSpeed config to the parts of our engine: precision, loss scaler, ZeRO options, mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from zenspeed.config import InputError
from zenspeed.parallel.mesh import World, build_mesh
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.scaler import DynamicLossScaler, LossScaler

DTYPES = {
    "fp32": torch.float32, "float32": torch.float32, "torch.float32": torch.float32, "float": torch.float32,
    "fp16": torch.float16, "float16": torch.float16, "torch.float16": torch.float16, "half": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "torch.bfloat16": torch.bfloat16,
}  # fmt: skip


class Precision(NamedTuple):
    parameters: torch.dtype
    autocast: torch.dtype | None
    """Type of torch's autocast around forward; None: no autocast."""
    scaler: LossScaler


def to_dtype(value: Any, key: str) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    if str(value).lower() not in DTYPES:
        raise InputError(f"{key}: {value!r} is no type; one of fp32, fp16, bf16")
    return DTYPES[str(value).lower()]


def precision(config: Any) -> Precision:
    """fp16 and bf16 keep the module in that type with fp32 masters; torch_autocast keeps it in fp32."""
    if config.fp16.enabled and config.bf16.enabled:
        raise InputError("fp16.enabled and bf16.enabled are both true; keep one")
    if config.fp16.enabled:
        return Precision(torch.float16, None, make_scaler(config.fp16))
    if config.bf16.enabled:
        return Precision(torch.bfloat16, None, LossScaler())
    cast = config.torch_autocast
    if cast is None or not cast.enabled:
        return Precision(torch.float32, None, LossScaler())
    dtype = to_dtype(cast.dtype, "torch_autocast.dtype") or torch.bfloat16
    scaler = DynamicLossScaler() if dtype == torch.float16 else LossScaler()
    return Precision(torch.float32, dtype, scaler)


def make_scaler(fp16: Any) -> LossScaler:
    """`loss_scale` above 0 is a static scale, 0 a dynamic one."""
    if fp16.loss_scale:
        return LossScaler(float(fp16.loss_scale))
    return DynamicLossScaler(
        2.0**fp16.initial_scale_power,
        fp16.loss_scale_window,
        fp16.hysteresis,
        fp16.consecutive_hysteresis,
        float(fp16.min_loss_scale),
    )


def zero_options(config: Any, dtype: torch.dtype) -> ZeroOptions:
    zero = config.zero_optimization
    cpu = torch.device("cpu")
    masters = _offload(zero.offload_optimizer, "offload_optimizer")
    weights = _offload(zero.offload_param, "offload_param")
    if weights and zero.stage != 3:
        raise InputError(f"zero_optimization.offload_param needs stage 3, not {int(zero.stage)}")
    grad = to_dtype(config.data_types.grad_accum_dtype, "data_types.grad_accum_dtype")
    return ZeroOptions(
        stage=int(zero.stage),
        grad_dtype=grad if grad != dtype else None,
        reduce_dtype=to_dtype(config.communication_data_type, "communication_data_type"),
        # A bucket of DeepSpeed's default size would hold most models whole and overlap nothing.
        bucket_elements=min(int(zero.reduce_bucket_size), 8_000_000),
        master_device=cpu if masters or weights else None,
        weight_device=cpu if weights else None,
    )


def _offload(section: Any, key: str) -> bool:
    device = str(getattr(section.device, "value", section.device)) if section is not None else "none"
    if device == "nvme":
        raise InputError(f"zero_optimization.{key}.device nvme: not supported here; use cpu or none")
    return device == "cpu"


def mesh_of(config: Any, world: World, mesh_param: Any) -> DeviceMesh:
    """Hybrid sharding where `zero_hpz_partition_size` or `mesh_param` (data, sequence) asks for it."""
    if mesh_param is not None:
        data, sequence = (*tuple(mesh_param), 1)[:2]
        if sequence != 1:
            raise InputError(f"mesh_param {tuple(mesh_param)}: sequence parallelism of {sequence} is not built yet; use 1")
        if data != world.size:
            raise InputError(f"mesh_param {tuple(mesh_param)}: {data} × {sequence} is not the number of ranks, {world.size}")
    size = int(config.zero_optimization.zero_hpz_partition_size)
    return build_mesh(world, size if size > 1 else None)


def cast(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Moves the module and casts its floating parameters; buffers keep their type. A tied parameter stays tied."""
    module.to(device)
    if dtype == torch.float32:
        return
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)

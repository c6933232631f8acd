"""`initialize` and its friends: DeepSpeed's calls over any `nn.Module`.

An adapter over `zenspeed.engine`, which does the work on torch's own distributed parts. What is not built is refused by name.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from zenspeed.compat import checkpointing, deepspeed_config
from zenspeed.compat.data import make_dataloader
from zenspeed.compat.engine import DeepSpeedEngine
from zenspeed.compat.optimizer import plan_client, plan_named
from zenspeed.compat.utils import mark_leaf_modules
from zenspeed.config import InputError
from zenspeed.machine import keep_memory
from zenspeed.optim import OptimizerPlan
from zenspeed.parallel.mesh import meet, start_world


@dataclass
class EngineArgs:
    """Settings as arguments instead of a config file: `initialize(model=…, optimizer=…, args=EngineArgs(fp16=True))`."""

    system_rank: int = 0
    """Number of this machine; the launcher's environment counts where it is set."""
    local_rank: int = 0
    """Number of this process on its machine; the launcher's environment counts where it is set."""
    fp16: bool = False
    bf16: bool = False
    amp: bool = False
    """Automatic mixed precision: torch's autocast, bf16 on a CPU, fp16 with dynamic loss scaling on other devices."""
    zero_stage: int = 0
    train_micro_batch_size_per_gpu: int = 1
    gradient_accumulation_steps: int = 1
    gradient_clipping: float = 0.0
    deepspeed_config: str | None = None

    def copy(self) -> EngineArgs:
        return copy.copy(self)

    def to_config(self) -> dict[str, Any]:
        return _config_of_args(self)


def _config_of_args(args: Any) -> dict[str, Any]:
    """A config from `fp16`, `bf16`, `amp` and the like of `args`; precision is one of the three."""
    chosen = [k for k in ("fp16", "bf16", "amp") if getattr(args, k, False)]
    if "amp" in chosen and len(chosen) > 1:
        chosen = ["amp"]  # `args.amp = True` on arguments that said fp16: autocast is what was asked for last
    if len(chosen) > 1:
        raise InputError(f"args: {' and '.join(chosen)} are all true; keep one")
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": getattr(args, "train_micro_batch_size_per_gpu", 1),
        "gradient_accumulation_steps": getattr(args, "gradient_accumulation_steps", 1),
        "gradient_clipping": getattr(args, "gradient_clipping", 0.0),
        "zero_optimization": {"stage": getattr(args, "zero_stage", 0)},
    }
    if chosen == ["amp"]:
        half = "float16" if torch.accelerator.is_available() else "bfloat16"
        config["torch_autocast"] = {"enabled": True, "dtype": half}
    elif chosen:
        config[chosen[0]] = {"enabled": True}
    return config


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | None = None,
    model_parameters: Iterable[Any] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = 29500,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: dict[str, Any] | str | Path | None = None,
    mesh_param: Any = None,
    config_params: dict[str, Any] | str | Path | None = None,
) -> tuple[DeepSpeedEngine, Any, Any, Any]:
    """(engine, optimizer, dataloader, lr_scheduler); what is not asked for is None.

    Args:
        args: a namespace with `deepspeed_config`, or `EngineArgs`; used where `config` is not given.
        optimizer: a torch optimizer over the model's parameters, or a function from parameters to one; before the config's.
        model_parameters: parameters or groups for the optimizer of the config; default: all that are trained.
        training_data: a dataset, from which the dataloader is made, each rank seeing its part.
        lr_scheduler: a scheduler, or a function from the optimizer to one; before the config's.
        config: a dict or the path of a JSON file. `config_params` is an older name.

    Raises:
        InputError: anything in the arguments or the config that cannot be used, by name.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"initialize: model must be a torch.nn.Module, not {type(model).__name__}")
    if mpu is not None:
        raise InputError("initialize: mpu (model parallelism of one's own) is not built yet; leave it out")
    keep_memory()
    init_distributed(distributed_port=distributed_port, dist_init_required=dist_init_required)
    world = start_world()
    given = _pick_config(args, config if config is not None else config_params)
    settings = deepspeed_config.load(given, args=args, world_size=world.size)
    mark_leaf_modules(model, settings.zero_optimization.leaf_module)
    if settings.activation_checkpointing.cpu_checkpointing:
        checkpointing.configure(checkpoint_in_cpu=True)

    def plans(module: nn.Module) -> list[OptimizerPlan]:
        return _plans(module, optimizer, model_parameters, settings)

    engine = DeepSpeedEngine(model, plans, settings, world, mesh_param)
    engine.client_optimizer = optimizer
    engine.lr_scheduler = _scheduler(engine, lr_scheduler, settings)
    if training_data is not None:
        engine.collate_fn = collate_fn
        engine.training_dataloader = make_dataloader(engine, training_data, collate_fn=collate_fn)
    return engine, engine.optimizer, engine.training_dataloader, engine.lr_scheduler


def _pick_config(args: Any, config: Any) -> Any:
    from_args = getattr(args, "deepspeed_config", None) or getattr(args, "deepscale_config", None)
    if config is not None and from_args is not None:
        raise InputError(f"initialize: two configs, config= and args.deepspeed_config={from_args!r}; keep one")
    if config is not None or from_args is not None:
        return config if config is not None else from_args
    if args is None:
        raise InputError("initialize: no config; give config= a dict or a file, or --deepspeed_config FILE through args")
    return _config_of_args(args)


def _plans(module: nn.Module, optimizer: Any, parameters: Iterable[Any] | None, settings: Any) -> list[OptimizerPlan]:
    given = list(parameters) if parameters is not None else [p for p in module.parameters() if p.requires_grad]
    if isinstance(optimizer, torch.optim.Optimizer):
        return plan_client(module, optimizer)
    if callable(optimizer):
        made = optimizer(given)
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(f"initialize: the optimizer function gave a {type(made).__name__}, not a torch optimizer")
        return plan_client(module, made)
    if optimizer is not None:
        raise InputError(f"initialize: optimizer is a {type(optimizer).__name__}; give a torch optimizer or a function to one")
    chosen = settings.optimizer
    if chosen is None or chosen.type is None:
        return []
    return plan_named(module, given, chosen.type, dict(chosen.params or {}))


def _scheduler(engine: DeepSpeedEngine, given: Any, settings: Any) -> Any:
    if given is not None and engine.optimizer is None:
        raise InputError("initialize: an lr_scheduler but no optimizer; give the optimizer too")
    if given is not None and (callable(given) and not hasattr(given, "step")):
        return given(engine.basic_optimizer)
    if given is not None:
        return given
    chosen = settings.scheduler
    if chosen is None or chosen.type is None or engine.optimizer is None:
        return None
    from zenspeed.compat import lr_schedules  # imports the schedules only where one is asked for

    return lr_schedules.build(chosen.type, dict(chosen.params or {}), engine.optimizer)


def init_distributed(
    dist_backend: str | None = None,
    auto_mpi_discovery: bool = True,
    distributed_port: int = 29500,
    verbose: bool = True,
    timeout: timedelta | None = None,
    init_method: str | None = None,
    dist_init_required: bool | None = None,
    config: Any = None,
    rank: int = -1,
    world_size: int = -1,
) -> None:
    """Joins the processes the launcher started; a single process needs no launcher. A group that is there is kept."""
    if dist.is_initialized():
        return
    if dist_init_required is False:
        raise InputError("dist_init_required=False, but torch.distributed is not initialized; leave it out")
    if init_method is not None or (rank >= 0 and world_size > 0):
        backend = dist_backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        port = f"tcp://127.0.0.1:{distributed_port}"
        dist.init_process_group(backend, init_method=init_method or port, rank=rank, world_size=world_size, timeout=timeout)
        meet()
        return
    start_world(timeout.total_seconds() if timeout else 1800.0)


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `--deepspeed` and `--deepspeed_config FILE` (and their names of old) to a script's parser."""
    group = parser.add_argument_group("DeepSpeed", "DeepSpeed configuration")
    group.add_argument("--deepspeed", default=False, action="store_true", help="use the engine of the config file")
    group.add_argument("--deepspeed_config", default=None, type=str, help="config file (JSON)")
    group.add_argument("--deepscale", default=False, action="store_true", help=argparse.SUPPRESS)
    group.add_argument("--deepscale_config", default=None, type=str, help=argparse.SUPPRESS)
    return parser

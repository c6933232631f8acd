"""Optimizers of a user's loop: a torch optimizer, a callable, or a name with parameters, over this rank's slices.

A client's optimizer object stays the object it is: only the tensors in its `param_groups` are exchanged for slices of the
fp32 masters, so a scheduler that was built on it goes on writing its rates where they are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zenspeed.config import InputError, nearest
from zenspeed.optim import Lamb, Lion, Muon, OptimizerPlan
from zenspeed.parallel.zero import Group, NamedParameter

if TYPE_CHECKING:
    from zenspeed.compat.engine import DeepSpeedEngine

# Each element's update depends on that element alone (and on the step), so slices may be cut anywhere.
ELEMENTWISE = {
    "Adam", "AdamW", "SGD", "Adagrad", "Adamax", "RMSprop", "Adadelta", "NAdam", "RAdam", "ASGD", "Rprop", "Lion",
    "FusedAdam", "DeepSpeedCPUAdam", "FusedLion", "DeepSpeedCPULion", "DeepSpeedCPUAdagrad",
}  # fmt: skip
_COMPRESSED = (
    "it changes the result to send less, and here every layout gives what one process gives; use Adam or Lamb with "
    "communication_data_type: bf16, which halves the traffic"
)
REFUSED = {
    "LBFGS": "it calls the model several times a step", "SparseAdam": "gradients are dense here",
    "OneBitAdam": _COMPRESSED, "OneBitLamb": _COMPRESSED, "ZeroOneAdam": _COMPRESSED, "MuAdam": "it needs the package mup",
    "MuAdamW": "it needs the package mup", "MuSGD": "it needs the package mup",
}  # fmt: skip
NAMED = {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "lamb": "Lamb", "lion": "Lion", "muon": "Muon", "sgd": "SGD"}
# Which kernel runs is no choice to make here: torch's fused one always does.
KERNEL_OPTIONS = {"torch_adam", "adam_w_mode", "set_grad_none", "fp32_optimizer_states", "adamw_mode"}


def plan_client(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[OptimizerPlan]:
    """The plan that exchanges the parameters of a constructed optimizer for slices, and keeps everything else of it."""
    name = type(optimizer).__name__
    if name in REFUSED:
        raise InputError(
            f"optimizer {name}: {REFUSED[name]}; give Adam, AdamW, SGD, Lion, Lamb, Muon or another of torch.optim"
        )
    if any(float(state.get("step", 1)) > 0 for state in optimizer.state.values()):
        raise InputError(
            f"optimizer {name} has state already, of whole parameters; give it to initialize() fresh and load a saved state by "
            "engine.load_checkpoint"
        )
    groups = [Group(_named(module, g["params"]), name not in ELEMENTWISE) for g in optimizer.param_groups]
    _no_twice(groups)

    def build(sliced: list[dict[str, Any]]) -> torch.optim.Optimizer:
        for mine, given in zip(optimizer.param_groups, sliced, strict=True):
            mine["params"] = given["params"]
        if optimizer.state:  # Adagrad makes its state, of whole parameters, when it is constructed
            optimizer.state.clear()
            for group in optimizer.param_groups:
                for p in group["params"]:
                    start = group.get("initial_accumulator_value", 0.0)
                    optimizer.state[p] = {"step": torch.zeros(()), "sum": torch.full_like(p, start)}
        return optimizer

    return [OptimizerPlan(build, groups, [{"lr": g.get("lr", 0.0)} for g in optimizer.param_groups], always=True)]


def plan_named(module: nn.Module, parameters: Iterable[Any], name: str, params: dict[str, Any]) -> list[OptimizerPlan]:
    """The plan of `optimizer: {type, params}`; `parameters` are tensors or groups with options of their own."""
    if "max_grad_norm" in params:
        raise InputError("optimizer.params.max_grad_norm: not an optimizer's; set gradient_clipping instead")
    kind = NAMED.get(name.lower(), name)
    groups = _groups(parameters)
    if kind == "Muon":
        return _plan_muon(module, groups, dict(params))
    return plan_client(module, _construct(kind, name, groups, dict(params)))


def _construct(kind: str, name: str, groups: list[dict[str, Any]], params: dict[str, Any]) -> torch.optim.Optimizer:
    if kind in REFUSED:
        raise InputError(f"optimizer.type {name}: {REFUSED[kind]}")
    if kind == "Adam" and params.get("adam_w_mode", params.get("adamw_mode", True)):
        kind = "AdamW"  # what the name means in such configs unless they say otherwise
    ours: dict[str, Any] = {"Lion": Lion, "Lamb": Lamb}
    constructor = ours.get(kind) or getattr(torch.optim, kind, None)
    if not (isinstance(constructor, type) and issubclass(constructor, torch.optim.Optimizer)):
        known = [*NAMED.values(), *(n for n in dir(torch.optim) if n[0].isupper())]
        raise InputError(
            f"optimizer.type {name}: no such optimizer{nearest(name, known)} (any of torch.optim, Lamb, Lion, Muon)"
        )
    if not params.pop("bias_correction", True):
        raise InputError(f"optimizer.params.bias_correction false: {kind} corrects its bias here; leave the key out")
    params = {k: v for k, v in params.items() if k not in KERNEL_OPTIONS}
    if kind in ("Adam", "AdamW"):
        params = {"lr": 1e-3, "weight_decay": 0.0, "fused": True} | params
    try:
        return constructor(groups, **params)
    except (TypeError, ValueError) as error:
        known = list(inspect.signature(constructor).parameters)[1:]
        for key in params:
            if key not in known:
                raise InputError(
                    f"optimizer.params.{key}: {kind} has no such argument{nearest(key, known)} (it has {', '.join(known)})"
                ) from None
        raise InputError(f"optimizer.params: {kind} does not take them: {error}") from None


def _plan_muon(module: nn.Module, groups: list[dict[str, Any]], params: dict[str, Any]) -> list[OptimizerPlan]:
    """Matrices that are not embeddings or head to Muon, the rest to AdamW."""
    lr = params.pop("lr", 1e-3)
    muon_lr, adam_lr = params.pop("muon_lr", lr), params.pop("adam_lr", lr)
    muon_options = {k: params.pop(k) for k in ("momentum", "nesterov", "ns_steps") if k in params}
    adam = {k: params.pop(k) for k in ("betas", "eps") if k in params}
    decay = params.pop("weight_decay", 0.0)
    if unknown := set(params) - KERNEL_OPTIONS:
        raise InputError(f"optimizer.params.{sorted(unknown)[0]}: Muon does not take it")
    named = [p for g in groups for p in _named(module, g["params"])]
    inner = [p for p in named if p.parameter.ndim == 2 and "embed" not in p.name and "lm_head" not in p.name]
    inside = {p.name for p in inner}
    rest = [p for p in named if p.name not in inside]
    plans = []
    if inner:
        plans.append(
            OptimizerPlan(
                lambda g: Muon(g, dtype=torch.float32, **muon_options),
                [Group(inner, whole=True)],
                [{"lr": muon_lr, "weight_decay": decay}],
                always=True,
            )
        )
    if rest:
        build = lambda g: torch.optim.AdamW(g, fused=True, **adam)  # noqa: E731
        plans.append(OptimizerPlan(build, [Group(rest, False)], [{"lr": adam_lr, "weight_decay": decay}], always=True))
    return plans


def _groups(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameter groups with at least one parameter that is trained."""
    items = list(parameters)
    if items and not isinstance(items[0], dict):
        items = [{"params": [p for _, p in items] if isinstance(items[0], tuple) else items}]
    groups = [g | {"params": [g["params"]] if isinstance(g["params"], Tensor) else list(g["params"])} for g in items]
    return [g for g in groups if any(p.requires_grad for p in g["params"])]


def _named(module: nn.Module, parameters: Iterable[Tensor]) -> list[NamedParameter]:
    names = {id(p): n for n, p in module.named_parameters()}
    out = []
    for p in parameters:
        if id(p) not in names:
            raise InputError(
                f"the optimizer has a parameter of shape {tuple(p.shape)} that is not the model's; build it from "
                "model.parameters() of the very model given to initialize()"
            )
        if p.requires_grad:
            out.append(NamedParameter(names[id(p)], p))  # type: ignore[arg-type]
    return out


def _no_twice(groups: Sequence[Group]) -> None:
    seen: set[str] = set()
    for group in groups:
        for p in group.parameters:
            if p.name in seen:
                raise InputError(f"the optimizer has parameter {p.name} twice; put each in one group only")
            seen.add(p.name)


class EngineOptimizer(torch.optim.Optimizer):
    """What `initialize` returns as the optimizer: rates to read and write, loss scale, overflow of the last update.

    `param_groups` are the live groups of the optimizer inside; their tensors are this rank's slices.
    """

    def __init__(self, engine: DeepSpeedEngine, inner: list[torch.optim.Optimizer]) -> None:
        # Not super().__init__: parameters and state are those of `inner`.
        self._engine, self.inner = engine, inner
        self.optimizer = inner[0]
        self.defaults = dict(inner[0].defaults)
        self.overflow = False
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            setattr(self, hooks, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [g for optimizer in self.inner for g in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {k: v for optimizer in self.inner for k, v in optimizer.state.items()}

    @property
    def cur_scale(self) -> float:
        return self._engine.core.scaler.scale

    loss_scale = cur_scale

    @property
    def dynamic_loss_scale(self) -> bool:
        return self._engine.dynamic_loss_scale()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, whatever the accumulation count says; `engine.step()` is the usual way."""
        if closure is not None:
            raise InputError("optimizer.step(closure): closures are not supported; call engine.backward, then engine.step")
        self._engine.take_update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._engine.zero_grad()

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        self._engine.backward(loss, retain_graph=retain_graph)

    def refresh_fp32_params(self) -> None:
        """After the module's weights were changed by hand: the masters are made equal to them. All ranks call it."""
        self._engine.refresh_masters()

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the state; `engine.save_checkpoint` is what any other layout can load."""
        return {
            "optimizers": [o.state_dict() for o in self.inner],
            "loss_scaler": self._engine.core.scaler.state_dict(),
            "zero_stage": self._engine.zero_optimization_stage(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "optimizers" not in state or state.get("zero_stage") != self._engine.zero_optimization_stage():
            raise InputError("optimizer.load_state_dict: not a state of this layout; use engine.load_checkpoint")
        for optimizer, part in zip(self.inner, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        self._engine.core.scaler.load_state_dict(state["loss_scaler"])

    def __repr__(self) -> str:
        return f"EngineOptimizer({', '.join(repr(o) for o in self.inner)})"

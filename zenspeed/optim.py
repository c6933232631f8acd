"""Optimizers and schedules by name.

A plan says which parameters go to which optimizer, with which options; the engine cuts the parameters into slices and
hands these to `build`. Optimizers are torch's own, fused where torch has a fused kernel; Muon is ours, because torch's
orthogonalizes one matrix at a time and ours all matrices of one shape in one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zenspeed.parallel.zero import Group, NamedParameter
from zenspeed.recipe import OptimConfig


class OptimizerPlan(NamedTuple):
    """One optimizer: how to make it from parameter groups, and the parameters of each group with its options."""

    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    groups: list[Group]
    options: list[dict[str, Any]]
    always: bool = False
    """Build it on ranks that hold none of its parameters as well."""


def plan_optimizers(module: nn.Module, config: OptimConfig, compute_dtype: torch.dtype = torch.float32) -> list[OptimizerPlan]:
    """The optimizers of a recipe. Only matrices are decayed. With muon, embeddings, head and vectors go to AdamW.

    Muon's iteration runs in `compute_dtype`: bf16 is enough for it, but would show a difference of 1e-7 in a gradient as
    1e-4 in the loss, and who asks for fp32 asks for equal losses in every layout.
    """
    named = [NamedParameter(n, p) for n, p in module.named_parameters() if p.requires_grad]
    tables = [p for p in named if p.name.endswith("ngrams.weight")]  # of a body under a head as well
    rest = [p for p in named if not p.name.endswith("ngrams.weight")]
    ratio = float(getattr(getattr(module, "config", None), "width_ratio", 1.0))
    return [*_plan_dense(rest, config, compute_dtype, ratio), *([_adagrad(tables, config)] if tables else [])]


def _plan_dense(
    named: list[NamedParameter], config: OptimConfig, compute_dtype: torch.dtype, ratio: float
) -> list[OptimizerPlan]:
    """`ratio`: width over the width that the rates are for. Adam's rates of matrices inside blocks fall with it, SGD's of all
    others grow (µP, Yang et al. 2203.03466, table 8); Muon's steps are of one size at every width and need nothing."""
    inner = [p for p in named if p.parameter.ndim == 2 and _inside_block(p.name)]
    if config.name == "muon":
        inside = {p.name for p in inner}
        muon = OptimizerPlan(
            lambda groups: Muon(groups, momentum=config.momentum, dtype=compute_dtype),
            [Group(inner, whole=True)],
            [{"lr": config.lr, "weight_decay": config.weight_decay}],
        )
        return [muon, _adamw([p for p in named if p.name not in inside], config, config.adam_lr, ratio)]
    if config.name == "adamw":
        return [_adamw(named, config, config.lr, ratio)]
    groups, options = _by_decay(named, config.weight_decay, config.lr, hidden=1.0, others=ratio)
    build = lambda groups: torch.optim.SGD(groups, momentum=config.momentum, fused=True)  # noqa: E731
    return [OptimizerPlan(build, groups, options)]


def _adamw(named: list[NamedParameter], config: OptimConfig, lr: float, ratio: float) -> OptimizerPlan:
    groups, options = _by_decay(named, config.weight_decay, lr, hidden=1 / ratio, others=1.0)
    return OptimizerPlan(
        lambda groups: torch.optim.AdamW(groups, betas=config.betas, eps=config.epsilon, fused=True), groups, options
    )


def _adagrad(tables: list[NamedParameter], config: OptimConfig) -> OptimizerPlan:
    """Adagrad for hashed tables: a row's rate falls with how often it was seen, and no momentum moves it unseen."""
    options = {"lr": config.ngram_lr, "weight_decay": 0.0}
    return OptimizerPlan(
        lambda groups: torch.optim.Adagrad(groups, eps=1e-8, fused=True), [Group(tables, whole=False)], [options]
    )


def _inside_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _by_decay(
    named: Sequence[NamedParameter], weight_decay: float, lr: float, hidden: float, others: float
) -> tuple[list[Group], list[dict[str, Any]]]:
    """Matrices and vectors apart, and matrices inside blocks where their rate differs: `hidden` or `others` times `lr`.

    A step takes `rate · decay` of a weight; that product stays the same.
    """
    inner = {p.name for p in named if hidden != others and p.parameter.ndim >= 2 and _inside_block(p.name)}
    parts = [
        ([p for p in named if p.name in inner], hidden, weight_decay),
        ([p for p in named if p.parameter.ndim >= 2 and p.name not in inner], others, weight_decay),
        ([p for p in named if p.parameter.ndim < 2], others, 0.0),
    ]
    kept = [(Group(m, whole=False), {"lr": lr * factor, "weight_decay": decay / factor}) for m, factor, decay in parts if m]
    return [group for group, _ in kept], [options for _, options in kept]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz iteration (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    For matrices only. The step is `lr · sqrt(max(1, rows / columns)) · NS(nesterov momentum)`, as in `torch.optim.Muon`
    with `adjust_lr_fn="original"`; matrices of one shape are orthogonalized together.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.dtype = dtype
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "ns_steps": ns_steps
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon updates matrices; got a parameter of shape {tuple(p.shape)}, give it to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_shape(params, group)
        return loss

    def _step_shape(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        updates = orthogonalize(torch.stack(directions), group["ns_steps"], self.dtype)
        rows, columns = params[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        lr = group["lr"] * math.sqrt(max(1.0, rows / columns))
        torch._foreach_add_(params, [u.to(p.dtype) for u, p in zip(updates.unbind(), params, strict=True)], alpha=-lr)


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2). Element by element."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                average = self.state[p]["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.lerp(p.grad, average, beta1).sign_(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - beta2)
        return loss


class Lamb(torch.optim.Optimizer):
    """Adam with each parameter's step scaled to its norm (You et al. 2020, arXiv 1904.00962, algorithm 2).

    The ratio |w| / |update| is held between `min_coeff` and `max_coeff`. Needs whole parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "max_coeff": max_coeff,
                "min_coeff": min_coeff,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, p.grad, group)
        return loss

    def _step_one(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        (beta1, beta2), step = group["betas"], float(state["step"])
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        update = state["exp_avg"] / (1 - beta1**step)
        update.div_((state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"]))
        update.add_(p, alpha=group["weight_decay"])
        weight_norm, update_norm = float(p.norm()), float(update.norm())
        ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        p.add_(update, alpha=-group["lr"] * min(max(ratio, group["min_coeff"]), group["max_coeff"]))


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: singular values end in about 0.7 … 1.2. (N, rows, columns), in `dtype`.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024, on the short side.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def lr_factor(config: OptimConfig, progress: float, step: int, steps: int | None) -> float:
    """What base rates are multiplied with in update `step` (from 0), `progress` (0 … 1) through the run.

    `steps` is the run's length where it is known; a warm-up given in steps counts updates, one given as a share of the
    run follows `progress`. The first update of a warm-up has a rate above zero.
    """
    warm = 1.0
    if config.warmup >= 1:
        warm = min(1.0, (step + 1) / config.warmup)
        share = config.warmup / steps if steps else 0.0
    else:
        share = config.warmup
        if share > 0:
            warm = min(1.0, (progress + 1 / steps if steps else progress + 1e-3) / share)
    if warm < 1.0:
        return warm
    left = 1.0 - min(1.0, max(0.0, (progress - share) / max(1e-9, 1.0 - share)))
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        shape = 0.5 * (1 - math.cos(math.pi * left))
    elif config.schedule == "wsd":
        shape = min(1.0, left * (1.0 - share) / config.decay)
    else:
        shape = left
    return config.final_lr + (1.0 - config.final_lr) * shape

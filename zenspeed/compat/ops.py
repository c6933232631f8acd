"""Optimizers by the names of DeepSpeed's own: the arithmetic is torch's, nothing is compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from zenspeed.errors import InputError
from zenspeed.optim import Lamb, Lion

Betas = tuple[float, float]


class FusedAdam(torch.optim.AdamW):
    """AdamW, or with `adam_w_mode=False` Adam with weight decay as L2."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        set_grad_none: bool = True,
    ) -> None:
        _corrected(type(self).__name__, bias_correction)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = adam_w_mode


class DeepSpeedCPUAdam(FusedAdam):
    """The same with the arguments that Accelerate gives."""

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adamw_mode: bool = True,
        fp32_optimizer_states: bool = True,
    ) -> None:
        super().__init__(model_params, lr, bias_correction, betas, eps, adamw_mode, weight_decay, amsgrad)


class DeepSpeedCPUAdagrad(torch.optim.Adagrad):
    """Adagrad."""

    def __init__(
        self,
        model_params: Iterable[Any],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(model_params, lr=lr, eps=eps, weight_decay=weight_decay)


class FusedLion(Lion):
    """Lion."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        weight_decay: float = 0.0,
        set_grad_none: bool = True,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)


class DeepSpeedCPULion(FusedLion):
    """Lion."""


class FusedLamb(Lamb):
    """LAMB."""


def _corrected(name: str, bias_correction: bool) -> None:
    if not bias_correction:
        raise InputError(f"{name}: bias_correction=False is not supported; leave it out")

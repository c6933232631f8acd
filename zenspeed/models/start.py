"""Weights of one model as the start of another that has the same body, under the same head or a new one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.models.hf import LoadReport, shorten


@torch.no_grad()
def copy_weights(model: nn.Module, source: Mapping[str, Tensor], source_name: str, *, same_head: bool) -> LoadReport:
    """Copies into `model` what it shares with `source`, the weights of another of our models. A decoder's language model
    holds its body itself, all others as `body.…`; both are understood.

    Args:
        same_head: both are of one kind, so that the head is copied as well where its shape is the same.

    Raises:
        InputError: a weight of the body is not there or has another shape; all of them are named.
    """
    free = {name.removeprefix("body."): tensor for name, tensor in source.items()}
    absent: list[str] = []
    new: list[str] = []
    for name, parameter in model.named_parameters():
        key = name.removeprefix("body.")
        of_head = key.startswith("head.")
        if key in free and free[key].shape == parameter.shape and (same_head or not of_head):
            parameter.copy_(free.pop(key))
        else:
            (new if of_head else absent).append(f"{name} {tuple(parameter.shape)}")
    left_over = [f"{name} {tuple(tensor.shape)}" for name, tensor in free.items()]
    if absent:
        body = [name for name in left_over if not name.startswith("head.")]
        more = f"; {len(body)} left over: {shorten(body)}" if body else ""
        raise InputError(f"{source_name}: {len(absent)} weights of the body are not there: {shorten(absent)}{more}")
    return LoadReport(missing=[], unused=left_over, initialised=new)

"""Which module, parameter and micro-batch was the first to give a value that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.parallel.zero import ZeroModule, _tensors


class Finding(NamedTuple):
    """One rank's first value that is not finite."""

    order: int
    """0 an output of a module, 1 a loss, 2 a gradient."""
    place: int
    """Which of one order came first: the micro-batch, or how far backward had come."""
    rank: int
    text: str


def diagnose(
    module: nn.Module,
    zero: ZeroModule,
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    bad_losses: Sequence[tuple[int, float]] | None,
    forward: Callable[..., Any],
) -> str:
    """What was found first, over all ranks; every rank calls this together and gets the same sentence.

    Args:
        calls: arguments of the forward calls since the last update, tensors detached.
        bad_losses: (number of the call, value) of the losses that were not finite; None: the losses are not known.
        forward: the module's forward as the engine calls it.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    # Every rank runs the same number of forward passes: at stage 3 they gather weights together.
    wanted: list[Any] = [None] * ranks
    doubtful = range(len(calls)) if bad_losses is None else [index for index, _ in bad_losses[:1]]
    dist.all_gather_object(wanted, list(doubtful))
    found: list[Finding] = []
    if bad_losses:
        index, value = bad_losses[0]
        found.append(Finding(1, index, rank, f"the loss of micro-batch {index} is {value}"))
    for index in sorted({index for indexes in wanted for index in indexes}):
        if index < len(calls) and (text := _first_bad_output(module, calls[index], forward)):
            found.append(Finding(0, index, rank, f"{text} in micro-batch {index}"))
    if gradient := _first_bad_gradient(module, zero):
        found.append(Finding(2, gradient[0], rank, gradient[1]))
    everywhere: list[list[Finding]] = [[] for _ in range(ranks)]
    dist.all_gather_object(everywhere, found)
    firsts = sorted(f for one in everywhere for f in one)
    if not firsts:
        return "the sum of squares of the gradients is not finite, though each of them is: they are very large"
    sentences = [next((f for f in firsts if f.order == order), None) for order in (0, 1, 2)]
    return "; ".join(f"rank {f.rank}: {f.text}" for f in sentences if f is not None)


def _first_bad_output(
    module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], forward: Callable[..., Any]
) -> str | None:
    """Runs `call` once more and names the first module whose output is not finite, or the parameter or input it had."""
    found: list[str] = []
    names = {m: name or "the model itself" for name, m in module.named_modules()}

    def look(m: nn.Module, inputs: Any, output: Any) -> None:
        bad = None if found else next((v for t in _tensors(output) if (v := bad_value(t)) is not None), None)
        if bad is None:
            return
        broken = next((n for n, p in m.named_parameters(recurse=False) if bad_value(p) is not None), None)
        given = any(bad_value(t) is not None for t in _tensors(inputs))
        why = f", whose parameter {broken} is not finite" if broken else ", whose input is not finite" if given else ""
        found.append(f"module {names[m]} ({type(m).__name__}{why}) gave {bad}")

    handles = [m.register_forward_hook(look) for m in names]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            forward(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _first_bad_gradient(module: nn.Module, zero: ZeroModule) -> tuple[int, str] | None:
    """The parameter whose gradient was the first not to be finite, among this rank's slices, and how many come before it.

    Backward goes from the last module to the first, so it is the last one in the order of the module.
    """
    bad: dict[str, float] = {}
    for bucket in zero.trainable:
        if bucket.grad_slice is None:
            continue
        for piece in bucket.pieces():
            part = bucket.grad_slice[piece.offset : piece.offset + piece.stop - piece.start]
            if (value := bad_value(part)) is not None:
                bad[piece.name] = value
    for place, (name, _) in enumerate(reversed(list(module.named_parameters()))):
        if name in bad:
            owner = module.get_submodule(name.rpartition(".")[0])
            where = name.rpartition(".")[0] or "the model itself"
            return place, f"the gradient of parameter {name} of module {where} ({type(owner).__name__}) has {bad[name]}"
    return None


def bad_value(tensor: Tensor) -> float | None:
    """The first value of `tensor` that is not finite, if there is one."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    wrong = ~torch.isfinite(tensor.detach())
    return float(tensor.detach()[wrong].reshape(-1)[0]) if bool(wrong.any()) else None

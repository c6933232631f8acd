"""This machine, measured: the recipe's model with two blocks and with four is trained for a few updates, and the rest follows.

A block's time is half the difference, embedding, head and all else is what is left; the same for memory. The measurement
runs in as many processes as the plan is for, at its ZeRO stage, so that messages, and cores that slow each other down, are
in the figures, and no rate of a kernel has to be known. Every model is measured in processes of its own: memory that an
earlier one left behind would be counted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
from torch import nn

from zenspeed.config import InputError
from zenspeed.engine import Engine
from zenspeed.machine import keep_memory, resident_bytes
from zenspeed.models.build import build_model
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import World, build_mesh, world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe

UPDATES = 6
LAYERS = (2, 4)


class Measured(NamedTuple):
    """Of one process on this machine, for one micro-batch."""

    block_seconds: float
    """Forward and backward of a block."""
    rest_seconds: float
    """Of embedding, head and loss."""
    block_update_seconds: float
    """Of sums over ranks, clipping and optimizer, for a block."""
    rest_update_seconds: float
    block_bytes: float
    """Of a process, for a block: states, activations, and what a backward needs on the way."""
    rest_bytes: float
    """Of a process without blocks."""


class _One(NamedTuple):
    passes: float
    update: float
    memory: float


def measure(recipe: Recipe, vocab_size: int, precision: str, ranks: int, threads: int) -> Measured:
    """Some seconds of training on random tokens in `ranks` processes; `precision` fp32 or bf16.

    Raises:
        InputError: a process died, as of too little memory.
    """
    few, more = (_run(recipe, vocab_size, precision, ranks, threads, layers) for layers in LAYERS)
    blocks = LAYERS[1] - LAYERS[0]

    def split(name: str) -> tuple[float, float]:
        a, b = getattr(few, name), getattr(more, name)
        each = max((b - a) / blocks, 0.0)
        return each, max(a - LAYERS[0] * each, 0.0)

    return Measured(*split("passes"), *split("update"), *split("memory"))


def _run(recipe: Recipe, vocab_size: int, precision: str, ranks: int, threads: int, layers: int) -> _One:
    found = in_processes(_measure_one, ranks, threads, recipe, vocab_size, precision, layers)
    if not isinstance(found, list):
        raise InputError(f"plan: measuring {layers} layers in {ranks} processes {found}; take a smaller model")
    return _One(*(max(values) for values in zip(*found, strict=True)))


def in_processes(
    work: Callable[..., Any], ranks: int, threads: int, *arguments: Any, seconds: float | None = None
) -> list[Any] | str:
    """What `work(here, *arguments)` gives in `ranks` fresh processes that form a world, in no order.

    `work` is a function of a module, and all that goes in and out is plain data. A string instead says how they ended: one
    died, or they took more than `seconds`.
    """
    end = None if seconds is None else time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, threads, results, work, arguments), daemon=True)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        # Asked once a turn: a process may end between two questions, and there would be nothing left to wait for.
        while (running := [process for process in processes if process.exitcode is None]) and not any(
            process.exitcode for process in processes
        ):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return f"took more than {seconds:.0f} s"
            wait([process.sentinel for process in running], left)
        codes = [process.exitcode for process in processes]
        if any(codes):
            return f"ended with codes {', '.join('still running' if c is None else str(c) for c in codes)}"
        return [results.get() for _ in processes]
    finally:  # Ctrl-C, or one that died while others wait for it
        for process in processes:
            process.kill()
            process.join()


def untrained(recipe: Recipe, vocab_size: int, dtype: torch.dtype, here: World, lanes: int = 1) -> tuple[nn.Module, Engine]:
    """A recipe's model with random weights and its engine, to be measured."""
    model = build_model(recipe.model, vocab_size, "language", 0).to(here.device)
    model.init_weights(0)  # type: ignore[operator]
    plans, mesh = plan_optimizers(model, recipe.optim, dtype), build_mesh(here, recipe.parallel.shard_ranks)
    options = ZeroOptions(stage=recipe.parallel.zero)
    return model, Engine(model, plans, mesh, options, compute_dtype=dtype, clip=recipe.train.clip, lanes=lanes)


def _rank(rank: int, ranks: int, port: int, threads: int, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    if ranks > 1:
        names = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    keep_memory()
    torch.set_num_threads(threads)
    with world() as here:
        results.put(work(here, *arguments))


def _measure_one(here: World, recipe: Recipe, vocab_size: int, precision: str, layers: int) -> tuple[float, float, float]:
    micro = recipe.train.micro_batch_size or 1
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tokens = torch.randint(0, vocab_size, (micro, recipe.model.context + 1))
    inputs, targets = tokens[:, :-1].contiguous().to(here.device), tokens[:, 1:].contiguous().to(here.device)
    shape = recipe.model.model_copy(update={"layers": layers})
    model, engine = untrained(recipe.model_copy(update={"model": shape}), vocab_size, dtype, here)
    passes, updates = [], []
    for step in range(UPDATES + 2):
        start = time.perf_counter()
        with engine.autocast():
            loss = model(tokens=inputs, targets=targets) / targets.numel()
        engine.backward(loss, last=True)
        middle = time.perf_counter()
        engine.update()
        if step >= 2:
            passes.append(middle - start)
            updates.append(time.perf_counter() - middle)
    return statistics.median(passes), statistics.median(updates), float(resident_bytes())

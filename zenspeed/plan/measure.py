"""This machine, measured: the recipe's model with two blocks and with four is trained for a few updates, and the rest follows.

A block's time is half the difference, embedding, head and all else is what is left; the same for memory. The measurement
runs in as many processes as the plan is for, at its ZeRO stage, with the micro-batch and the lanes that training would choose,
so that messages, and cores that slow each other down, are in the figures, and no rate of a kernel has to be known. Every model
is measured in processes of its own: memory that an earlier one left behind would be counted.

What disturbs one of the two models for as long as it is measured counts twice or more where the model is deeper, and processes
that wait for each other at every message are disturbed most. Several are measured in two rounds, of which the faster counts.
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
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.engine import Engine
from zenspeed.machine import keep_memory, resident_bytes
from zenspeed.models.build import build_model
from zenspeed.models.recompute import recompute_blocks
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import World, build_mesh, world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe
from zenspeed.resolve import resolve

UPDATES = 6
LAYERS = (2, 4)
MICRO_BATCHES = 2
"""Of a lane, at most; the rest of a rank's share of the batch takes as long for each."""


class Resolved(NamedTuple):
    """What training here would choose where the recipe leaves it open."""

    micro_batch: int
    lanes: int
    precision: str


class Measured(NamedTuple):
    """Of one process on this machine, for its share of an update."""

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
    resolved: Resolved


class _One(NamedTuple):
    passes: float
    update: float
    memory: float


def measure(recipe: Recipe, vocab_size: int, ranks: int, threads: int) -> Measured:
    """Some seconds of training on random tokens in `ranks` processes.

    Raises:
        InputError: a process died, as of too little memory.
    """
    rounds = [[_run(recipe, vocab_size, ranks, threads, layers) for layers in LAYERS] for _ in range(2 if ranks > 1 else 1)]
    few, more = (
        _One(*(min(values) for values in zip(*(one for one, _ in found), strict=True))) for found in zip(*rounds, strict=True)
    )
    blocks = LAYERS[1] - LAYERS[0]

    def split(name: str) -> tuple[float, float]:
        a, b = getattr(few, name), getattr(more, name)
        each = max((b - a) / blocks, 0.0)
        return each, max(a - LAYERS[0] * each, 0.0)

    return Measured(*split("passes"), *split("update"), *split("memory"), resolved=rounds[0][0][1])


def _run(recipe: Recipe, vocab_size: int, ranks: int, threads: int, layers: int) -> tuple[_One, Resolved]:
    """The slowest rank's times, the fullest one's memory."""
    found = in_processes(_measure_one, ranks, threads, recipe, vocab_size, layers)
    if isinstance(found, list) and isinstance(found[0], str):
        raise InputError(found[0])
    if not isinstance(found, list):
        raise InputError(f"plan: measuring {layers} layers in {ranks} processes {found}; take a smaller model")
    return _One(*(max(values) for values in zip(*(one for one, _ in found), strict=True))), found[0][1]


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
    if recipe.train.recompute:
        recompute_blocks(model)
    plans, mesh = plan_optimizers(model, recipe.optim, dtype), build_mesh(here, recipe.parallel.shard_ranks)
    options = ZeroOptions(stage=recipe.parallel.zero)
    return model, Engine(model, plans, mesh, options, compute_dtype=dtype, clip=recipe.train.clip, lanes=lanes)


def _rank(rank: int, ranks: int, port: int, threads: int, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    # A session of its own, as torch elastic gives each rank: Linux shares cores out between sessions (autogroups), so that
    # ranks of one session would have half the cores that they have in training, where anything else runs.
    os.setsid()
    if ranks > 1:
        names = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    keep_memory()
    torch.set_num_threads(threads)
    with world() as here:
        results.put(work(here, *arguments))


def _measure_one(here: World, recipe: Recipe, vocab_size: int, layers: int) -> tuple[_One, Resolved] | str:
    """What one rank took; words instead where training would refuse the recipe here."""
    try:
        recipe = resolve(recipe.model_copy(update={"model": recipe.model.model_copy(update={"layers": layers})}), here)
    except InputError as error:
        return str(error)
    train = recipe.train
    micro, lanes = train.micro_batch_size or 1, train.lanes or 1
    dtype = torch.bfloat16 if train.half else torch.float32
    _, engine = untrained(recipe, vocab_size, dtype, here, lanes)
    count = train.batch_size // here.size // micro
    tokens = torch.randint(0, vocab_size, (min(count, MICRO_BATCHES * lanes), micro, recipe.model.context + 1))
    targets = float(train.batch_size * recipe.model.context)

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        batch = batch.to(here.device)
        return module(tokens=batch[:, :-1].contiguous(), targets=batch[:, 1:].contiguous())

    passes, updates = [], []
    for step in range(UPDATES + 2):
        start = time.perf_counter()
        float(engine.accumulate(list(tokens), loss, targets))
        middle = time.perf_counter()
        engine.update()
        if step >= 2:
            passes.append(middle - start)
            updates.append(time.perf_counter() - middle)
    share = statistics.median(passes) * count / len(tokens)
    return _One(share, statistics.median(updates), float(resident_bytes())), Resolved(micro, lanes, train.precision)

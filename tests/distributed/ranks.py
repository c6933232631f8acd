"""Runs a function in real processes that form a gloo group, and gives what each returned."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

_context = multiprocessing.get_context("forkserver")
# Imported once and forked: torch.optim alone imports torch._dynamo at its first use, 0.8 s in every process.
_context.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "torch._dynamo",
        "zenspeed.engine",
        "zenspeed.compat.deepspeed",
        "zenspeed.compat.lr_schedules",
    ]
)


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """`function(*arguments)` in `ranks` processes; the results by rank. A failure in any fails here with its traceback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    results: Any = _context.Queue()
    processes = [
        _context.Process(target=_enter, args=(rank, ranks, port, results, function, arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    out: dict[int, Any] = {}
    try:
        while len(out) < ranks:
            rank, value, error = results.get(timeout=timeout)
            if error is not None:
                raise AssertionError(f"rank {rank}:\n{error}")
            out[rank] = value
    except queue.Empty:
        raise AssertionError(f"only ranks {sorted(out)} of {ranks} finished in {timeout} s") from None
    finally:
        for process in processes:
            process.join(timeout=10 if len(out) == ranks else 0)
            process.kill()
    return [out[rank] for rank in range(ranks)]


def _enter(rank: int, ranks: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import os

    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        results.put((rank, function(*arguments), None))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))

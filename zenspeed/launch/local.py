"""Several processes on this machine, on torch elastic: when one fails, all end, and its number and last words are reported.

torch elastic also brings machines together (`Rendezvous`): each runs this same launcher, and a store that all can reach
numbers their processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from zenspeed.errors import InputError
from zenspeed.launch.rendezvous import Rendezvous, interface_of, own_address, quiet_store, settings, told
from zenspeed.launch.watch import Watch, watching
from zenspeed.machine import usable_cores

GRACE_SECONDS = 10
"""From the request to end until a process is killed: all have ended within 30 s of the first failure."""
LAST_LINES = 20
# What a rank says when another one has gone; it is not the cause.
VICTIM = re.compile(r"Connection (closed|reset) by peer|Broken pipe|recvValue failed|NCCL.*(remote process|aborted)", re.I)


class _NoPrefix(str):
    """An empty template for the beginning of lines that torch elastic does not take for "none given"."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def launch(num_processes: int, command: Sequence[str], rendezvous: Rendezvous | None = None, watch: Watch | None = None) -> int:
    """Runs `command` in `num_processes` processes here; returns the exit code of the first that failed, or 0.

    Every process finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment.
    `${local_rank}` in an argument becomes its number on this machine.
    """
    rendezvous = rendezvous or Rendezvous()
    least, most = rendezvous.span()
    if most > 1 and not rendezvous.endpoint:
        raise InputError("several machines need a place to meet: --rdzv HOST:PORT, the same on all of them")
    address = own_address(rendezvous.endpoint) if rendezvous.endpoint else None
    if address is not None and (interface := interface_of(address)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # gloo's own choice is what the machine's name resolves to
    # With torch 2.13's shared store a machine that joins a later round waits for ever for the address of rank 0, which says it
    # in its first round alone (dynamic_rendezvous.py, next_rendezvous), and processes that are started again read the addresses
    # of those before them and cannot connect (rendezvous.py, _create_c10d_store).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # Each process gets its share of the cores; torch elastic's own default is one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes)))
    with tempfile.TemporaryDirectory(prefix="zenspeed-launch-") as logs:
        with quiet_store():
            config = _config(num_processes, rendezvous, (least, most), logs, address)
        with told(rendezvous), watching(watch):
            return _run(config, command, Path(logs))


def _config(num_processes: int, rendezvous: Rendezvous, nodes: tuple[int, int], logs: str, address: str | None) -> Any:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=nodes[0],
        max_nodes=nodes[1],
        nproc_per_node=num_processes,
        rdzv_backend=rendezvous.backend,
        rdzv_endpoint=rendezvous.endpoint or "localhost:0",
        rdzv_configs=settings(rendezvous),
        local_addr=address,
        run_id=rendezvous.id,
        max_restarts=rendezvous.max_restarts,
        monitor_interval=0.1,
        shutdown_timeout=GRACE_SECONDS,
        # The error stream goes through a file, so that its last lines can be said again; it is shown as it comes.
        logs_specs=DefaultLogsSpecs(log_dir=logs, tee=Std.ERR),
        log_line_prefix_template=_NoPrefix(),
    )


class _KillLate(logging.Handler):
    """Kills a process that lives GRACE_SECONDS after it was asked to end.

    torch elastic waits 30 s for that, which no setting changes on this path, and says in its log whom it has asked.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if "closing signal" in str(record.msg) and isinstance(record.args, tuple) and isinstance(record.args[0], int):
            timer = threading.Timer(GRACE_SECONDS, _kill, [record.args[0]])
            timer.daemon = True
            timer.start()


def _kill(pid: int) -> None:
    """Ends a child of this process and all it has started, for each is the leader of a session of its own."""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        if psutil.Process(pid).ppid() == os.getpid():
            os.killpg(pid, signal.SIGKILL)


def _run(config: Any, command: Sequence[str], logs: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addHandler(_KillLate())
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        return _report(error, logs)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _report(error: Any, logs: Path) -> int:
    """Names the rank that failed first, and what it said last."""
    words = {f.local_rank: last_lines(logs, f.local_rank) for f in error.failures.values()}
    first = min(error.failures.items(), key=lambda f: (_is_victim(f[1], words), f[1].timestamp))
    rank, failure = first
    code = failure.exitcode
    if code not in (2, 130):  # those two have said what they had to say
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        said = words[failure.local_rank]
        tail = "; its last lines:\n" + "\n".join(f"  {line}" for line in said) if said else ""
        print(f"error: rank {rank} {how}; the other ranks were stopped{tail}", file=sys.stderr, flush=True)
    return code if code > 0 else 128 - code


def _is_victim(failure: Any, words: dict[int, list[str]]) -> bool:
    return any(VICTIM.search(line) for line in words[failure.local_rank])


def last_lines(logs: Path, local_rank: int) -> list[str]:
    """The end of what a process wrote to its error stream."""
    files = sorted(logs.glob(f"*/attempt_*/{local_rank}/stderr.log"), key=lambda p: p.stat().st_mtime)
    if not files:
        return []
    with files[-1].open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in deque(file, LAST_LINES) if line.strip()]


def end_with_input() -> None:
    """Ends this process when its standard input closes: how a machine started by ssh learns that the first one has gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()

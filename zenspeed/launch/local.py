"""Several processes on this machine, on torch elastic: when one fails, all end, and its number and last words are reported."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence

from zenspeed.machine import usable_cores


def launch(num_processes: int, command: Sequence[str]) -> int:
    """Runs `python command…` in `num_processes` processes; returns the exit code of the first that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each process gets its share of the cores; torch elastic's own default is one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes)))
    with tempfile.TemporaryDirectory(prefix="zenspeed-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="local",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = failure.exitcode
            if code not in (2, 130):  # those two have said what they had to say
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                print(f"error: rank {rank} {how}; the other ranks were stopped", file=sys.stderr)
            return code if code > 0 else 128 - code
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0

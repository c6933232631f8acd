"""The command line. Every verb imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from zenspeed.cli.app import app
from zenspeed.errors import InputError

# Files of verbs, in the order of `zenspeed --help`.
for _name in (
    "train",
    "data",
    "evaluate",
    "explain",
    "generate",
    "retrieve",
    "export",
    "serve",
    "plan",
    "tune",
    "launch",
    "parameter_server",
    "chaos",
    "report",
    "crossval",
    "harness",
):
    importlib.import_module(f"zenspeed.cli.{_name}")

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Runs the command line; what the user can put right is said in a line or two and ends with code 2."""
    # Threads that wait for each other spin for microseconds, not milliseconds: as fast on a quiet machine, and three times as
    # fast on one that is shared (docs/LOG.md). Read by OpenMP when torch is imported, so it is set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Products that oneDNN and torch keep compiled, one a shape, else 1,024 of them: batches of uneven texts have ever new
    # ones, of 0.3 MB each. A context of 4,096 tokens has 250 (docs/LOG.md).
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "512")
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)

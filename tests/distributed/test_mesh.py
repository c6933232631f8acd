"""Ranks that join a group wait for each other."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from zenspeed.parallel.mesh import start_world


def join_again(port: int, mark: str) -> bool:
    """Rank 1 is connected, and late in saying so; whether rank 0 waited for it."""
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    if os.environ["RANK"] == "0":
        start_world()
        return Path(mark).exists()
    dist.init_process_group("gloo")
    time.sleep(0.3)
    Path(mark).touch()
    dist.all_reduce(torch.zeros(1))
    return True


def test_a_rank_has_joined_when_all_are_connected(tmp_path: Path) -> None:
    """One that ends right after it joined would otherwise cut connections that others are still making."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert run_ranks(2, join_again, port, str(tmp_path / "mark")) == [True, True]

"""How machines find each other: by a store at HOST:PORT, which torch elastic starts on the machine that has this HOST."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from zenspeed.errors import InputError

LAST_CALL_SECONDS = 5
"""With MIN:MAX machines: how long more are waited for once MIN are there."""
KEEP_ALIVE_SECONDS = 2
LOST_AFTER = 5
"""Signs of life a machine may miss before it is taken for lost."""


@dataclass(frozen=True)
class Rendezvous:
    """How machines find each other. The default is this machine alone."""

    nodes: str = "1"
    """Number of machines, or "MIN:MAX" where they may come and go."""
    backend: str = "c10d"
    """`c10d`: any machine, in any order, at `endpoint`; `static`: machine number `node_rank`, the store is on number 0."""
    endpoint: str = ""
    """host:port of the store; empty: a free port of this machine."""
    id: str = "zenspeed"
    """Name of the run, the same on all machines."""
    node_rank: int = 0
    max_restarts: int = 0
    """How often all processes are started anew after a failure."""
    timeout_seconds: int = 600
    """How long machines wait for each other."""

    def span(self) -> tuple[int, int]:
        """Least and greatest number of machines."""
        least, _, most = self.nodes.partition(":")
        try:
            span = int(least), int(most or least)
        except ValueError:
            raise InputError(f"--nnodes {self.nodes}: expected a number or MIN:MAX, as in --nnodes 2 or --nnodes 1:4") from None
        if not 1 <= span[0] <= span[1]:
            raise InputError(f"--nnodes {self.nodes}: expected 1 ≤ MIN ≤ MAX")
        return span


@contextlib.contextmanager
def quiet_store() -> Iterator[None]:
    """torch is imported in this block. Its store then writes no C++ stacks at each attempt to reach another machine, or when
    the machine that holds it ends first, as one must; the processes that are launched are not concerned."""
    name, warnings = "TORCH_CPP_LOG_LEVEL", logging.getLogger("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    given = os.environ.get(name)
    os.environ.setdefault(name, "FATAL")
    warnings.setLevel(logging.ERROR)
    try:
        import torch.distributed  # noqa: F401

        yield
    finally:
        if given is None:
            del os.environ[name]


def settings(rendezvous: Rendezvous) -> dict[str, Any]:
    """As torch elastic's rendezvous backends have them."""
    if rendezvous.backend == "static":
        return {"rank": rendezvous.node_rank, "timeout": rendezvous.timeout_seconds}
    hosts = _hosts(rendezvous.endpoint)
    return ({} if hosts is None else {"is_host": hosts}) | {
        "join_timeout": rendezvous.timeout_seconds,
        "read_timeout": min(60, rendezvous.timeout_seconds),
        "last_call_timeout": LAST_CALL_SECONDS,
        "keep_alive_interval": KEEP_ALIVE_SECONDS,
        "keep_alive_max_attempt": LOST_AFTER,
    }


def _hosts(endpoint: str) -> bool | None:
    """Whether the store is started here; None leaves it to torch, which goes by the machine's name."""
    if not endpoint:
        return None
    host, port = _split(endpoint)
    address = socket.gethostbyname(host)
    if address.startswith("127."):
        return None
    if own_address(endpoint) != address:
        return False
    with socket.socket() as probe:  # another launcher of this machine may have started it already
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _split(endpoint: str) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--rdzv {endpoint}: expected HOST:PORT, as in --rdzv worker-1:29400")
    return host, int(port)


def own_address(endpoint: str) -> str:
    """This machine's address as those at `endpoint` see it.

    Raises:
        InputError: `endpoint` is not HOST:PORT, or there is no such host.
    """
    host, port = _split(endpoint)
    try:
        where = socket.gethostbyname(host), port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # of a datagram socket: nothing is sent, a route is chosen
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(f"--rdzv {endpoint}: {host} is not known here: {error.strerror}; give a name or an address") from None


def interface_of(address: str) -> str | None:
    """The network interface that has `address`; None for the loopback, where all programs find each other."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            return None if psutil.net_if_stats()[name].flags.find("loopback") >= 0 else name
    return None


@contextlib.contextmanager
def told(rendezvous: Rendezvous) -> Iterator[None]:
    """Says in one line what torch elastic raises where machines do not come together."""
    from torch.distributed import DistError, DistNetworkError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError

    place, seconds = f"--rdzv {rendezvous.endpoint}", rendezvous.timeout_seconds
    try:
        yield
    except RendezvousTimeoutError:
        raise InputError(
            f"{place}: fewer than {rendezvous.span()[0]} machines came within {seconds} s; start the same command on the "
            "others, with the same --rdzv-id, or wait longer: --rdzv-timeout SECONDS"
        ) from None
    except (RendezvousError, DistNetworkError, DistError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(
            f"{place}: cannot be reached: {reason}; start the command on that machine as well, and open its port to the others"
        ) from None

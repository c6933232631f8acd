"""Several hosts on one machine: a network namespace for each, joined by a bridge in one of its own. Needs root and `ip`."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zenspeed.chaos.carry import Carrier, Link, open_socket, open_tap

FAR = Link(delay_seconds=0.05, jitter_seconds=0.01)
"""As between continents: a tenth of a second there and back."""
_CLONE_NEWNET = 0x40000000


class Network:
    """Hosts number 0 … n - 1 with the addresses 10.77.0.1 … n at their device `eth0`."""

    DEVICE = "eth0"

    def __init__(self, name: str, hosts: int) -> None:
        self.name, self.hosts = name, hosts
        self._bridge = f"{name}-b"
        self._carriers: list[Carrier] = []

    def namespace(self, host: int) -> str:
        return f"{self.name}-{host}"

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def make(self) -> None:
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "br0", "up")
        for host in range(self.hosts):
            namespace, peer = self.namespace(host), ("peer", "name", self.DEVICE, "netns", self.namespace(host))
            _ip("netns", "add", namespace)
            _ip("-n", self._bridge, "link", "add", f"v{host}", "type", "veth", *peer)
            _ip("-n", self._bridge, "link", "set", f"v{host}", "master", "br0", "up")
            _ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", self.DEVICE)
            _ip("-n", namespace, "link", "set", self.DEVICE, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")

    def cut(self, host: int) -> None:
        """Nothing goes to or from `host` any more; nobody is told."""
        _ip("-n", self._bridge, "link", "set", f"v{host}", "nomaster")

    def slow(self, host: int) -> None:
        """What `host` sends goes at 20 Mbit/s, and waits in a queue until then."""
        self._queue(self.namespace(host), self.DEVICE, "tbf", "rate", "20mbit", "burst", "4kb", "latency", "2s")

    def delay(self, host: int) -> None:
        """What `host` sends and what is sent to it comes 50 ms later, ± 10."""
        self.link(host, FAR)

    def link(self, host: int, link: Link) -> None:
        """Puts `host` behind `link`, made by the kernel or, where it has no netem, by a thread of this process."""
        rate = () if link.bits_per_second == math.inf else ("rate", f"{link.bits_per_second:.0f}bit")
        netem = ("netem", "delay", f"{link.delay_seconds * 1e3}ms", f"{link.jitter_seconds * 1e3}ms", *rate)
        try:
            self._queue(self.namespace(host), self.DEVICE, *netem)
            self._queue(self._bridge, f"v{host}", *netem)
        except OSError:
            self._carry(host, link)

    def _queue(self, namespace: str, device: str, *discipline: str) -> None:
        _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *discipline)

    def _carry(self, host: int, link: Link) -> None:
        with inside(self._bridge):
            tap = open_tap(f"t{host}")
            try:
                ends = open_socket(f"v{host}"), tap
            except OSError:
                os.close(tap)
                raise
        self._carriers.append(Carrier(ends, link))
        # The new way is there before the old one goes, so that nothing is lost; for a moment a packet may come by both.
        _ip("-n", self._bridge, "link", "set", f"t{host}", "master", "br0", "up")
        _ip("-n", self._bridge, "link", "set", f"v{host}", "nomaster")

    def heal(self) -> None:
        self._end_carriers()
        for host in range(self.hosts):
            _ip("-n", self._bridge, "link", "set", f"v{host}", "master", "br0")
            for namespace, device in ((self.namespace(host), self.DEVICE), (self._bridge, f"v{host}")):
                with suppress(OSError):
                    _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")

    def remove(self) -> None:
        self._end_carriers()
        for name in [*(self.namespace(host) for host in range(self.hosts)), self._bridge]:
            with suppress(OSError):
                _ip("netns", "del", name)

    def _end_carriers(self) -> None:
        while self._carriers:
            self._carriers.pop().end()


FAULTS: dict[str, Callable[[Network, int], None]] = {
    "network cut": Network.cut,
    "slow network": Network.slow,
    "network delay": Network.delay,
}
NEEDS = {
    "network cut": "root and `ip`",
    "slow network": "root, `ip` and `tc`",
    "network delay": "root, `ip`, and netem or /dev/net/tun",
}


@contextmanager
def network(hosts: int) -> Iterator[Network | None]:
    """Hosts for the length of a `with` block; None where this user or system cannot have them."""
    made = Network(f"zs{os.getpid()}", hosts)
    try:
        try:
            made.make()
        except OSError:
            yield None
        else:
            yield made
    finally:
        made.remove()


def can_have(there: Network | None, kind: str) -> bool:
    """Whether this fault can be made here: it is, and healed again."""
    if there is None:
        return False
    try:
        FAULTS[kind](there, 0)
    except OSError:
        return False
    finally:
        there.heal()
    return True


def enter(namespace: str) -> None:
    """Makes this thread, and what it starts, one of another host's network."""
    _enter(Path("/var/run/netns", namespace))


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in another host's network, for the length of a `with` block."""
    with Path("/proc/thread-self/ns/net").open() as home:
        enter(namespace)
        try:
            yield
        finally:
            _enter(Path(f"/proc/self/fd/{home.fileno()}"))


def _enter(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {path}")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

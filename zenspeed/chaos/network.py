"""Several hosts on one machine: a network namespace for each, joined by a bridge in one of its own. Needs root and `ip`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Network:
    """Hosts number 0 … n - 1 with the addresses 10.77.0.1 … n."""

    def __init__(self, name: str, hosts: int) -> None:
        self.name, self.hosts = name, hosts

    def namespace(self, host: int) -> str:
        return f"{self.name}-{host}"

    @property
    def address(self) -> str:
        """Of host 0."""
        return "10.77.0.1"

    def make(self) -> None:
        bridge = f"{self.name}-b"
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for host in range(self.hosts):
            namespace = self.namespace(host)
            _ip("netns", "add", namespace)
            _ip("-n", bridge, "link", "add", f"v{host}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", bridge, "link", "set", f"v{host}", "master", "br0", "up")
            _ip("-n", namespace, "addr", "add", f"10.77.0.{host + 1}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")

    def cut(self, host: int) -> None:
        """Nothing goes to or from `host` any more; nobody is told."""
        _ip("-n", f"{self.name}-b", "link", "set", f"v{host}", "nomaster")

    def slow(self, host: int) -> None:
        """What `host` sends goes at 20 Mbit/s, and waits in a queue until then."""
        limit = ("tbf", "rate", "20mbit", "burst", "4kb", "latency", "2s")
        _run("tc", "-n", self.namespace(host), "qdisc", "add", "dev", "eth0", "root", *limit)

    def heal(self) -> None:
        for host in range(self.hosts):
            _ip("-n", f"{self.name}-b", "link", "set", f"v{host}", "master", "br0")
            with suppress(OSError):
                _run("tc", "-n", self.namespace(host), "qdisc", "del", "dev", "eth0", "root")

    def remove(self) -> None:
        for name in [*(self.namespace(host) for host in range(self.hosts)), f"{self.name}-b"]:
            with suppress(OSError):
                _ip("netns", "del", name)


@contextmanager
def network(hosts: int) -> Iterator[Network | None]:
    """Hosts for the length of a `with` block; None where this user or system cannot have them."""
    made = Network(f"zs{os.getpid()}", hosts)
    try:
        try:
            if shutil.which("ip") is None:
                raise OSError("no ip")
            made.make()
        except OSError:
            yield None
        else:
            yield made
    finally:
        made.remove()


def can_slow(there: Network) -> bool:
    try:
        there.slow(0)
    except OSError:
        return False
    there.heal()
    return True


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

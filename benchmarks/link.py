"""A slow link between two network namespaces, made in user space: two TUN devices, and this process that carries packets.

    site a (10.9.0.1) ── tun ── delay, then so many bits a second ── tun ── site b (10.9.0.2)

For machines whose kernel has no `netem`. Everything that goes from one site to the other is held up, whoever sent it.
Needs root and iproute2. Each direction has a queue of a second at most; a packet beyond that is dropped, as a router would.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

SITES = ("zenspeed-a", "zenspeed-b")
ADDRESSES = ("10.9.0.1", "10.9.0.2")
DEVICE = "zs0"
MTU = 1500
QUEUE_SECONDS = 1.0


def run(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def build() -> None:
    """Two namespaces, each with one device and an address."""
    remove()
    for site, address in zip(SITES, ADDRESSES, strict=True):
        run("netns", "add", site)
        run("-n", site, "tuntap", "add", "dev", DEVICE, "mode", "tun")
        run("-n", site, "address", "add", f"{address}/24", "dev", DEVICE)
        run("-n", site, "link", "set", DEVICE, "mtu", str(MTU), "up")
        run("-n", site, "link", "set", "lo", "up")


def remove() -> None:
    for site in SITES:
        subprocess.run(["ip", "netns", "delete", site], check=False, stderr=subprocess.DEVNULL)


def open_device(site: str) -> int:
    """The site's end of the link, as a file that packets are read from and written to."""
    with Path(f"/var/run/netns/{site}").open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter {site}; this needs root")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH", DEVICE.encode(), 0x0001 | 0x1000))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    os.set_blocking(device, False)
    return device


def carry(bits_per_second: float, delay_seconds: float) -> None:
    """Carries packets until it is ended."""
    devices = [open_device(site) for site in SITES]
    other = dict(zip(devices, reversed(devices), strict=True))
    free_at = dict.fromkeys(devices, 0.0)  # when the last packet of this direction has left
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, device, packet = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # a packet that is lost: TCP sends it again
                os.write(device, packet)
        wait = max(0.0, under_way[0][0] - now) if under_way else 1.0
        for device in select.select(devices, [], [], wait)[0]:
            packet = os.read(device, 65536)
            begin = max(time.monotonic(), free_at[device])
            if begin - time.monotonic() > QUEUE_SECONDS:
                continue
            free_at[device] = begin + 8 * len(packet) / bits_per_second
            count += 1
            heapq.heappush(under_way, (free_at[device] + delay_seconds, count, other[device], packet))


if __name__ == "__main__":
    carry(float(sys.argv[1]), float(sys.argv[2]))

"""A link in user space, for kernels without `netem`: a thread that takes each packet and hands it on later.

    host ── veth ── packet socket ── so many bits a second, then a delay ── tap ── bridge

Both ends hand over whole frames with a header that says which checksums and which cuts into segments the sender left to a
device (VNET_HDR); it goes on with the frame, so that the kernel does both at the other end. Each direction keeps its order, and
has a queue of a second at most: a packet beyond that is dropped, as a router would. Needs root.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

QUEUE_SECONDS = 1.0
MOST_BYTES = 2**17
"""Longer than any frame; the longest are 64 KiB, when the device is to cut them."""

# linux/if_packet.h, linux/if_tun.h; the socket module has no names for them.
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL = 3
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


class Link(NamedTuple):
    """What happens to packets, each way."""

    delay_seconds: float
    jitter_seconds: float = 0.0
    """The delay is drawn evenly from `delay_seconds` ± this."""
    bits_per_second: float = math.inf


def open_socket(device: str) -> int:
    """All frames that come in at `device`, and a way out of it. In this thread's network."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as end:
        end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        end.bind((device, _ETH_P_ALL))
        return end.detach()


def open_tap(device: str) -> int:
    """A new network device, which goes when it is closed; what is sent to it is read here. In this thread's network."""
    end = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError:
        os.close(end)
        raise
    return end


class Carrier:
    """Carries packets between two open files until it is ended, which closes them."""

    def __init__(self, ends: tuple[int, int], link: Link) -> None:
        self._ends, (left, right) = ends, ends
        self._ways = _Way(left, right, link), _Way(right, left, link)
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def end(self) -> None:
        os.close(self._end)
        self._thread.join()
        for file in (self._ended, *self._ends):
            os.close(file)

    def _carry(self) -> None:
        by_source = {way.source: way for way in self._ways}
        while True:
            now = time.monotonic()
            for way in self._ways:
                way.give(now)
            due = min(way.next_due for way in self._ways)
            wait = max(0.0, due - now) if due < math.inf else None
            ready = select.select([self._ended, *by_source], [], [], wait)[0]
            if self._ended in ready:
                return
            for source in ready:
                by_source[source].take()


class _Way:
    """One direction."""

    def __init__(self, source: int, target: int, link: Link) -> None:
        self.source, self.target, self.link = source, target, link
        self._free_at = 0.0  # when the last packet has left
        self._under_way: deque[tuple[float, bytes]] = deque()  # (when it is due, packet)
        self._random = random.Random(0)

    @property
    def next_due(self) -> float:
        return self._under_way[0][0] if self._under_way else math.inf

    def take(self) -> None:
        packet, now = os.read(self.source, MOST_BYTES), time.monotonic()
        begin = max(now, self._free_at)
        if begin - now > QUEUE_SECONDS:
            return
        self._free_at = begin + 8 * len(packet) / self.link.bits_per_second
        jitter = self._random.uniform(-1, 1) * self.link.jitter_seconds
        self._under_way.append((self._free_at + self.link.delay_seconds + jitter, packet))

    def give(self, now: float) -> None:
        while self.next_due <= now:
            with suppress(OSError):  # a packet that is lost: TCP sends it again
                os.write(self.target, self._under_way.popleft()[1])

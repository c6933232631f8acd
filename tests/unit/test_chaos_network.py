"""Networks that are broken on purpose: what a link in user space does to packets, and what is said where there can be none."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from zenspeed.chaos import network as module
from zenspeed.chaos.carry import MOST_BYTES, Carrier, Link, _Way
from zenspeed.chaos.network import Network, inside, network
from zenspeed.chaos.run import _possible
from zenspeed.errors import InputError

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
LEAST_SECONDS = module.FAR.delay_seconds - module.FAR.jitter_seconds


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network(2) as there:
        if there is None:
            pytest.skip("needs root and `ip`")
        yield there


def test_packets_come_later_and_in_their_order() -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    (left, left_end), (right, right_end) = pairs
    carrier = Carrier((left_end.detach(), right_end.detach()), module.FAR)
    with left, right:
        for sender, receiver in ((left, right), (right, left)):
            receiver.settimeout(20)
            sent = []
            for number in range(20):
                sent.append(time.monotonic())
                sender.send(bytes([number]))
            for number in range(20):
                assert receiver.recv(MOST_BYTES) == bytes([number])
                assert time.monotonic() - sent[number] >= LEAST_SECONDS
        carrier.end()
        assert left.recv(1) == b""  # its end is closed


def test_a_packet_behind_a_full_queue_is_dropped() -> None:
    """100 bytes a second: the second packet waits for 0.9 s, which is allowed, and the third would for 2.9."""
    receiver, sender = os.pipe()
    way, began = _Way(receiver, sender, Link(5.0, bits_per_second=800.0)), time.monotonic()
    for size, under_way in ((90, 1), (200, 2), (1, 2)):
        os.write(sender, b"x" * size)
        way.take()
        assert len(way._under_way) == under_way
    assert way.next_due >= began + 0.9 + 5.0
    os.close(receiver), os.close(sender)


def connect_seconds(there: Network) -> float:
    """Of host 1 to host 0: one way there, one back."""
    address = there.address(0), 5000
    with inside(there.namespace(0)), socket.create_server(address), inside(there.namespace(1)):
        began = time.monotonic()
        with socket.create_connection(address, timeout=20):
            return time.monotonic() - began


@pytest.mark.parametrize("host", [0, 1])
def test_a_delayed_host_is_far_in_both_directions_until_it_is_healed(hosts: Network, host: int) -> None:
    connect_seconds(hosts)
    hosts.delay(host)
    assert connect_seconds(hosts) >= 2 * LEAST_SECONDS
    hosts.heal()
    assert not hosts._carriers
    hosts.delay(host)  # once more: nothing was left behind
    assert connect_seconds(hosts) >= 2 * LEAST_SECONDS


@pytest.mark.parametrize("sender", [0, 1])
def test_nothing_is_lost_when_a_host_becomes_far(hosts: Network, sender: int) -> None:
    """Lost packets are sent again after 0.2 s, 0.4, 0.8 …: such a pause is no delay of 50 ms. Some may come twice."""
    address, over, sent = (hosts.address(1 - sender), 5000), threading.Event(), []
    with inside(hosts.namespace(1 - sender)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(20)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**24)  # on a busy machine, many come before any is read
        with inside(hosts.namespace(sender)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:

            def send() -> None:
                while not over.wait(0.001):
                    sent.append(len(sent))
                    sending.sendto(struct.pack("q", sent[-1]), address)

            thread = threading.Thread(target=send)
            thread.start()
            came = {struct.unpack("q", receiver.recv(8))[0]}
            hosts.delay(1)
            over.set()
            thread.join()
        while not came.issuperset(sent[min(came) :]):
            came |= {struct.unpack("q", receiver.recv(8))[0]}


def test_netem_is_taken_where_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "_run", lambda *command: said.append(" ".join(command)))
    there = Network("n", 2)
    there.delay(1)
    there.link(0, Link(0.05, bits_per_second=10e6))
    assert said == [
        "tc -n n-1 qdisc add dev eth0 root netem delay 50.0ms 10.0ms",
        "tc -n n-b qdisc add dev v1 root netem delay 50.0ms 10.0ms",
        "tc -n n-0 qdisc add dev eth0 root netem delay 50.0ms 0.0ms rate 10000000bit",
        "tc -n n-b qdisc add dev v0 root netem delay 50.0ms 0.0ms rate 10000000bit",
    ]
    assert not there._carriers


def test_what_cannot_be_made_here_is_said() -> None:
    said: list[str] = []
    assert _possible(["network delay", "kill", "slow network"], None, said.append) == ["kill"]
    assert said == [
        "not here: network delay (needs root, `ip`, and netem or /dev/net/tun)",
        "not here: slow network (needs root, `ip` and `tc`)",
    ]
    with pytest.raises(InputError, match="none of these faults can be made here"):
        _possible(["network delay"], None, said.append)


def test_a_fault_that_this_kernel_refuses_is_not_here(monkeypatch: pytest.MonkeyPatch, hosts: Network) -> None:
    def refuse(device: str) -> int:
        raise OSError(f"no {device}")

    monkeypatch.setattr(module, "open_tap", refuse)
    monkeypatch.setattr(Network, "_queue", lambda self, *words: refuse("netem"))
    said: list[str] = []
    assert _possible(["network delay", "network cut"], hosts, said.append) == ["network cut"]
    assert len(said) == 1

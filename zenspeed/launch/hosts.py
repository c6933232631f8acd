"""Which machines, and how many processes on each: a hostfile and the filters of DeepSpeed's launcher.

    # a hostfile: one machine per line
    worker-1 slots=4
    worker-2 slots=4

`--include worker-2` takes a machine whole, `--include worker-1@worker-2:0,2` one whole and two slots of another, `--exclude`
takes the others.
"""

from __future__ import annotations

import re
from pathlib import Path

from zenspeed.config import nearest, read_text
from zenspeed.errors import InputError

Slots = dict[str, list[int]]
"""Machine -> the numbers of its slots; the order is that of the hostfile."""


def read_hostfile(path: Path) -> Slots:
    """Machines and slots; `#` starts a comment.

    Raises:
        InputError: the file is not there, is empty, or a line is not `name slots=N`.
    """
    hosts: Slots = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if not found or found[2] == "0":
            raise InputError(f"{path}:{number}: {text!r} is not a machine; expected: name slots=N, with N above 0")
        if found[1] in hosts:
            raise InputError(f"{path}:{number}: {found[1]}: given twice; keep one")
        hosts[found[1]] = list(range(int(found[2])))
    if not hosts:
        raise InputError(f"{path}: names no machine; expected lines such as: worker-1 slots=4")
    return hosts


def choose(hosts: Slots, include: str = "", exclude: str = "") -> Slots:
    """The part of `hosts` that the filters leave, in the order of `hosts`."""
    if include and exclude:
        raise InputError("--include and --exclude are both given; keep one")
    if include:
        wanted = _parse(include, "--include", hosts)
        chosen = {host: wanted[host] for host in hosts if host in wanted}
    else:
        unwanted = _parse(exclude, "--exclude", hosts) if exclude else {}
        chosen = {host: [s for s in slots if s not in unwanted.get(host, [])] for host, slots in hosts.items()}
    chosen = {host: slots for host, slots in chosen.items() if slots}
    if not chosen:
        raise InputError(f"--exclude {exclude}: leaves no slot on any machine")
    return chosen


def limit(hosts: Slots, num_nodes: int | None, num_slots: int | None) -> Slots:
    """The first `num_nodes` machines with the first `num_slots` slots of each."""
    if num_nodes is not None and num_nodes > len(hosts):
        raise InputError(f"--num_nodes {num_nodes}: the hostfile has {len(hosts)} machines")
    chosen = dict(list(hosts.items())[:num_nodes])
    for host, slots in chosen.items():
        if num_slots is not None and num_slots > len(slots):
            raise InputError(f"--num_gpus {num_slots}: {host} has {len(slots)} slots")
    return {host: slots[:num_slots] for host, slots in chosen.items()}


def _parse(text: str, option: str, hosts: Slots) -> Slots:
    out: Slots = {}
    for part in text.split("@"):
        host, colon, numbers = part.strip().partition(":")
        if host not in hosts:
            raise InputError(f"{option} {text}: no machine {host!r}{nearest(host, hosts)} (there are {', '.join(hosts)})")
        if host in out:
            raise InputError(f"{option} {text}: {host} is named twice; write its slots as {host}:0,1")
        try:
            slots = [int(n) for n in numbers.split(",")] if colon else hosts[host]
        except ValueError:
            raise InputError(f"{option} {text}: {numbers!r} are no slots; expected numbers, as in {host}:0,1") from None
        for slot in slots:
            if slot not in hosts[host]:
                raise InputError(f"{option} {text}: {host} has no slot {slot}, it has {hosts[host][0]} to {hosts[host][-1]}")
        out[host] = sorted(set(slots))
    return out

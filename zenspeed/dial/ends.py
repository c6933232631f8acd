"""What a user may ask of the dial: a time, a loss, a memory, a size; read from words such as 10m, 2GB, 5M. No torch here."""

from __future__ import annotations

import re
from typing import NamedTuple

from zenspeed.errors import InputError

LEAST_SECONDS = 10.0
"""Start of the process, measurement, and what is written at the end take about this long without a single update."""
DEFAULT_SECONDS = 120.0

_TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME_WORDS = {"sec": "s", "second": "s", "seconds": "s", "min": "m", "minute": "m", "minutes": "m", "hour": "h", "hours": "h"}
_SIZES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


class Ends(NamedTuple):
    """The ends of the dial; None: not asked for."""

    seconds: float | None = None
    """Wall time of the run, from the start of its process to its end."""
    target: float | None = None
    """Bits per byte of held-out text that are to be reached, in the least time."""
    memory: float | None = None
    """Bytes that the process may take at most."""
    parameters: float | None = None
    """Weights that the model may have at most."""


def ends_of(budget: str | None, target: str | None, memory: str | None, parameters: str | None) -> Ends:
    """The ends as numbers.

    Raises:
        InputError: one of them is no such quantity, or a budget in which nothing can be trained.
    """
    ends = Ends(
        parse_seconds("--budget", budget) if budget is not None else None,
        _parse_target(target) if target is not None else None,
        parse_bytes("--memory", memory) if memory is not None else None,
        parse_count("--max-parameters", parameters) if parameters is not None else None,
    )
    if ends.seconds is not None and ends.seconds < LEAST_SECONDS:
        raise InputError(
            f"--budget {budget}: nothing can be trained in {ends.seconds:g} s: starting, measuring this machine and writing "
            f"the model take about {LEAST_SECONDS:g} s; give 30s or more"
        )
    return ends


def parse_seconds(option: str, text: str) -> float:
    """`90s`, `10m`, `1.5h`, `1h30m`, `2 minutes` in seconds."""
    parts = re.findall(rf"{_NUMBER}\s*([a-z]+)", text.strip().lower())
    rest = re.sub(rf"{_NUMBER}\s*[a-z]+\s*", "", text.strip().lower())
    units = [_TIME_WORDS.get(unit, unit) for _, unit in parts]
    if not parts or rest or any(unit not in _TIMES for unit in units) or len(set(units)) < len(units):
        raise InputError(f"{option} {text}: is no time; give a number with a unit: 90s, 10m, 1h30m, 2d")
    seconds = sum(float(number) * _TIMES[unit] for (number, _), unit in zip(parts, units, strict=True))
    if seconds <= 0:
        raise InputError(f"{option} {text}: is no time in which to train; give 30s or more")
    return seconds


def parse_bytes(option: str, text: str) -> float:
    """`800MB`, `2GB`, `1.5GiB` in bytes."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kmgt]i?)b?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{option} {text}: is no memory; give a number with a unit: 800MB, 2GB, 1.5GiB")
    return float(found[1]) * _SIZES[found[2]]


def parse_count(option: str, text: str) -> float:
    """`5M`, `300k`, `1.2B`, `5000000` as a number."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kmb]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{option} {text}: is no number of weights; give 300k, 5M, 1.2B")
    return float(found[1]) * _COUNTS[found[2]]


def _parse_target(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 8:
        raise InputError(
            f"--target-loss {text}: is no loss; give bits per byte of held-out text, above 0 and at most 8, such as 2.0 "
            "(a token's loss would depend on the vocabulary, which is chosen for you)"
        )
    return value


def spell_seconds(seconds: float) -> str:
    """For people: `90 s`, `10 min`, `1 h 30 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

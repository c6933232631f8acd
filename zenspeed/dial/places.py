"""One process with all threads, or several with fewer each: both are measured, where the run is long enough for that to pay.

A process of its own for each part of the cores costs a start (torch is imported again) and a model's gradients more; what it
gains depends on the machine. So the same two models that were measured in one process are trained in 2, 4, 8 … fresh
processes, as long as the last doubling paid.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Set
from typing import NamedTuple

import psutil
import torch

from zenspeed.dial.candidates import shaped
from zenspeed.dial.rate import Rate, measure
from zenspeed.machine import usable_cores
from zenspeed.parallel.mesh import World
from zenspeed.plan.measure import in_processes
from zenspeed.plan.work import Shape
from zenspeed.recipe import Recipe
from zenspeed.resolve import resolve

PAYS = 1.03
"""Times the speed of one process, below which it stays one, however small the noise is."""
START_SECONDS, PROBE_SECONDS = 4.0, 2.0
"""Of processes that import torch, and of what is measured in them."""
TRY_SHARE = 0.02
"""Of the run's time that trying may take."""


class Probes(NamedTuple):
    """What is trained to measure, in plain data: it goes to other processes."""

    recipe: Recipe
    given: frozenset[str]
    shapes: tuple[tuple[int, int], tuple[int, int]]
    """(layers, width) of both."""
    context: int
    tokens: int
    """Of a batch."""
    vocab_size: int


class Place(NamedTuple):
    """Processes of a run, and how fast they are together."""

    processes: int
    threads: int
    """Of each, as lanes."""
    lanes: int
    precision: str
    rate: Rate
    start_seconds: float = 0.0
    """That go by until its processes are there; 0: they are."""

    def __str__(self) -> str:
        return f"{self.processes} × {self.threads} thread{'s' if self.threads > 1 else ''}"


def measured(here: World, probes: Probes, seconds: float) -> Place:
    """The place that this process and its ranks are, measured in about `seconds`; the same on all ranks."""
    small, large = (
        resolve(shaped(probes.recipe, *shape, probes.context, probes.tokens, here.size, probes.given), here)
        for shape in probes.shapes
    )
    rate = measure(small, large, probes.vocab_size, here, seconds)
    return Place(here.size, torch.get_num_threads(), small.train.lanes or 1, str(small.train.precision), rate)


def counts(recipe: Recipe, given: Set[str], here: World, memory: float) -> list[int]:
    """Numbers of processes that could be tried beside this one; none where a launcher or the user has decided.

    memory: bytes that each is expected to take.
    """
    if "RANK" in os.environ or "OMP_NUM_THREADS" in os.environ or given & {"train.lanes", "parallel.mode"}:
        return []
    if here.device.type == "cpu":
        found = [2**n for n in range(1, usable_cores().bit_length()) if usable_cores() % 2**n == 0]
    else:
        found = [n for n in [torch.accelerator.device_count()] if n > 1]
    room = psutil.virtual_memory().available if here.device.type == "cpu" else math.inf
    shared = "train.batch_size" in given
    return [n for n in found if n * memory <= room and not (shared and recipe.train.batch_size % n)]


def best_place(
    own: Place, again: Callable[[], Place], numbers: list[int], probes: Probes, shape: Shape, batch: float, seconds: float
) -> tuple[Place, str]:
    """The fastest place for updates of `batch` tokens on a model of `shape`, and what is to be said of the choice.

    Args:
        again: measures `own` once more: one process is only left for a gain over the better of both.
        seconds: that are left of the run.
    """
    if not numbers:
        return own, ""
    cost = START_SECONDS + PROBE_SECONDS
    if cost > TRY_SHARE * seconds:
        return own, f"processes  one; more are tried where {cost:.0f} s are {TRY_SHARE:.0%} of the time or less"
    began, best, tried = time.perf_counter(), own, []
    for number in numbers:
        left = 2 * TRY_SHARE * seconds - (time.perf_counter() - began)
        if left < cost:
            break
        found = _try(number, probes, left)
        if isinstance(found, str):
            tried.append(f"{number} processes {found}")
            break
        gain = _gain(found, best, shape, batch)
        tried.append(f"{found} {_gain(found, own, shape, batch):.2f} × the speed of {own}")
        if gain <= _least_gain(found, best):
            break
        best = found
    if best is not own:
        own = min(own, again(), key=lambda place: place.rate.update_seconds(shape, batch))
        left = seconds - (time.perf_counter() - began)
        pays = _gain(best, own, shape, batch) * max(0.0, 1 - best.start_seconds / left)
        best = best if pays > _least_gain(best, own) else own
    took = time.perf_counter() - began
    chosen = "stays" if best.processes == own.processes else "is taken"
    return best, f"processes  {'; '.join(tried)}; {best} {chosen} ({took:.1f} s)"


def _try(number: int, probes: Probes, most: float) -> Place | str:
    """The place of `number` fresh processes, or how they ended; after `most` seconds they are."""
    began = time.perf_counter()
    found = in_processes(measured, number, max(1, usable_cores() // number), probes, PROBE_SECONDS, seconds=most)
    if isinstance(found, str):
        return found
    place: Place = found[0]
    return place._replace(start_seconds=max(1.0, time.perf_counter() - began - PROBE_SECONDS))


def _gain(new: Place, old: Place, shape: Shape, batch: float) -> float:
    return old.rate.update_seconds(shape, batch) / new.rate.update_seconds(shape, batch)


def _least_gain(new: Place, old: Place) -> float:
    """What is more than noise: two standard errors of the quotient."""
    return max(PAYS, 1 + 2 * math.hypot(new.rate.error, old.rate.error))

"""How a recipe is laid out here: processes × threads, micro-batch, ZeRO stage, recomputation, compilation.

zenspeed/plan ranks all of them on paper, by what this machine's products and memory were measured to do; the best few are
trained for some updates in processes of their own, beside the recipe as it is. Speed alone decides, and none of it changes what
is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.config import validate
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe
from zenspeed.tune.trial import Outcome, Place, Running, trial_recipe

UPDATES = 9
PAYS = 1.03
"""Times the speed of the recipe as it is, from which on a change is made: less than that is noise here."""


class Option(NamedTuple):
    """One layout. micro_batch None: as the recipe has it or leaves it open."""

    ranks: int
    micro_batch: int | None
    zero: int
    recompute: bool
    compile: bool | str

    def changes(self) -> dict[str, Any]:
        train: dict[str, Any] = {"recompute": self.recompute, "compile": self.compile}
        if self.micro_batch is not None:
            train["micro_batch_size"] = self.micro_batch
        return {"train": train, "parallel": {"zero": self.zero}}

    def __str__(self) -> str:
        parts = [f"{self.ranks} process{'es' if self.ranks > 1 else ''}", f"micro-batch {self.micro_batch or 'as resolved'}"]
        parts += [f"ZeRO {self.zero}"] if self.ranks > 1 else []
        return " · ".join([*parts, *(["recompute"] if self.recompute else []), *(["compile"] if self.compile is True else [])])


class Tried(NamedTuple):
    """A layout, what was expected of it and what it did."""

    option: Option
    planned: float | None
    """Tokens per second on paper; None: was not ranked."""
    outcome: Outcome

    @property
    def speed(self) -> float:
        return self.outcome.values.get("tokens_per_second", 0.0)


def with_option(recipe: Recipe, option: Option) -> Recipe:
    data = recipe.model_dump(mode="json")
    for section, values in option.changes().items():
        data[section] |= values
    return validate(Recipe, data)


def current(recipe: Recipe, ranks: int) -> Option:
    train = recipe.train
    return Option(ranks, train.micro_batch_size, recipe.parallel.zero, train.recompute, train.compile)


def candidates(recipe: Recipe, ranks: int | None) -> list[tuple[Option, float]]:
    """Layouts with tokens per second on paper, the best first. ranks: of all; None: any number that divides the cores."""
    from zenspeed.plan.advise import states_of, vocabulary
    from zenspeed.plan.estimate import estimate
    from zenspeed.plan.layout import Layout
    from zenspeed.plan.work import Shape

    cores, batch = usable_cores(), recipe.train.batch_size
    shape, found = Shape(recipe.model, vocabulary(recipe)), []
    for count in [ranks] if ranks else [n for n in range(1, cores + 1) if cores % n == 0 and batch % n == 0]:
        cluster, share = _this_machine(count), batch // count
        for micro in [2**i for i in range(share.bit_length()) if share % 2**i == 0]:
            for zero in [recipe.parallel.zero] if count == 1 else [1, 2]:
                for again in (recipe.train.recompute, True):
                    layout = Layout(
                        data=count, zero=zero, micro_batch=micro, accumulation=share // micro, gather_bytes=4,
                        recompute="full" if again else "none", optimizer_bytes=states_of(recipe), precision="bf16",
                    )  # fmt: skip
                    one = estimate(shape, layout, cluster, chunked=True)
                    if one.fits:  # recomputation costs time: only where there is too little memory without
                        found.append((Option(count, micro, zero, again, recipe.train.compile), one.tokens_per_second))
                        break
    return sorted(found, key=lambda pair: -pair[1])


def _this_machine(ranks: int) -> Any:
    """This machine as a cluster of `ranks` equal parts: products and memory measured, messages as fast as a copy."""
    import time

    import psutil
    import torch

    from zenspeed.machine import measure_matmul
    from zenspeed.plan.hardware import Accelerator, Cluster

    peak = measure_matmul(torch.bfloat16, torch.device("cpu"), 768, 2) / ranks
    source = torch.zeros(2**24)
    start = time.perf_counter()
    source.clone()
    bandwidth = 2 * source.numel() * 4 / (time.perf_counter() - start) / ranks
    memory = psutil.virtual_memory().total / ranks
    parts = Accelerator({"bf16": peak, "fp32": peak}, memory, bandwidth, bandwidth / 2, 0.0, ranks, 0.0, 1.0, "measured")
    return Cluster(f"this machine in {ranks}", parts, ranks, measured=True)


def pick_few(ranked: Sequence[tuple[Option, float]], own: Option, most: int) -> list[tuple[Option, float | None]]:
    """The recipe's own first, then the best on paper, no two that differ by less than a doubling of the micro-batch alone."""
    few: list[tuple[Option, float | None]] = [(own, next((p for o, p in ranked if o == own), None))]
    for option, planned in ranked:
        if len(few) > most:
            break
        same = any(option._replace(micro_batch=None) == o._replace(micro_batch=None) and o.micro_batch for o, _ in few)
        if option != own and not (same and sum(o.ranks == option.ranks for o, _ in few) > most // 2):
            few.append((option, planned))
    return few


def try_layouts(
    recipe: Recipe, folder: Path, ranks: int | None, most: int, say: Callable[[str], None], *, compiled: bool = False
) -> list[Tried]:
    """Measures the recipe as it is and the `most` best layouts, one after the other; the fastest first.

    compiled: the best on paper is tried with torch.compile as well, which takes a minute to begin with.
    """
    own = current(recipe, ranks or 1)
    few = pick_few(candidates(recipe, ranks), own, most)
    if compiled and recipe.task.kind == "language_model":
        few.append((few[-1 if len(few) == 1 else 1][0]._replace(compile=True), None))
    tried = []
    for number, (option, planned) in enumerate(few):
        place = Place(option.ranks, max(1, usable_cores() // option.ranks))
        short = trial_recipe(with_option(recipe, option), folder / f"layout-{number}", steps=UPDATES, evaluations=0)
        outcome = Running(short, folder / f"layout-{number}", place).wait()
        tried.append(Tried(option, planned, outcome))
        what = f"died, {outcome.died}" if outcome.died else f"{tried[-1].speed:,.0f} tokens/s"
        say(f"layout: {option}{' (the recipe as it is)' if number == 0 else ''}: {what}")
    return [tried[0], *sorted(tried[1:], key=lambda t: -t.speed)]


def choice_of(tried: Sequence[Tried]) -> Tried:
    """The fastest, if it is faster than the recipe's own by what pays."""
    own, others = tried[0], tried[1:]
    best = max(others, key=lambda t: t.speed, default=own)
    return best if best.speed > PAYS * own.speed else own

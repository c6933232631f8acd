"""Whether the winner of a search is better than the recipe it came from: both with seeds that the search never saw.

The best of many noisy results is partly the luckiest: what a search saw in its winner is better than what it will do again. The
difference is the search's optimism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zenspeed.config import validate
from zenspeed.recipe import Recipe
from zenspeed.tune.search import Metric
from zenspeed.tune.trial import Outcome, Place, run_all, trial_recipe

FIRST_SEED = 10_000
# Student's t at 97.5 % by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


class Verdict(NamedTuple):
    """Of winner and original over fresh seeds, in the first metric."""

    winner: float
    original: float
    difference: float
    """Of the winner from the original, seed by seed."""
    half_width: float | None
    """Of the difference's 95 % interval; None: one seed."""
    optimism: float
    """By how much the search saw the winner better than it is."""
    seeds: int
    better: bool
    """The winner is better on the mean."""
    certain: bool
    """The interval does not hold 0."""

    def words(self, metric: str) -> str:
        half = "" if self.half_width is None else f" ± {self.half_width:.3g}"
        sure = "certain at 95 %" if self.certain else "not certain: the interval holds 0" if half else "one seed only"
        said = f"{self.seeds} fresh seeds: {metric} {self.winner:.5g}, the recipe as it is {self.original:.5g}, difference "
        said += f"{self.difference:+.3g}{half} ({sure}); optimism of the search {self.optimism:+.3g}"
        return said if self.better else f"{said}; not better: the recipe's own values stay"


def verify(
    winner: Recipe,
    original: Recipe,
    metric: Metric,
    seen: float,
    folder: Path,
    place: Place,
    *,
    seeds: int,
    jobs: int,
    steps: int | None,
    say: Callable[[str], None],
) -> Verdict | str:
    """Trains both with `seeds` fresh seeds; the last words of a run that died."""
    recipes = []
    for number in range(seeds):
        for name, recipe in (("winner", winner), ("original", original)):
            data = recipe.model_dump(mode="json")
            data["run"]["seed"] = FIRST_SEED + recipe.run.seed + number
            where = folder / f"{name}-{number}"
            recipes.append((trial_recipe(validate(Recipe, data), where, steps=steps, evaluations=0), where))
    outcomes: list[Outcome] = []
    for outcome in run_all(recipes, place, jobs):
        if outcome.died:
            return outcome.died
        outcomes.append(outcome)
    values = [outcome.values[metric.name] for outcome in outcomes]
    verdict = judge(values[::2], values[1::2], seen, metric.maximize)
    say(f"fresh seeds: {metric.name} {verdict.winner:.4g} of the winner, {verdict.original:.4g} of the recipe as it is")
    return verdict


def judge(winner: Sequence[float], original: Sequence[float], seen: float, maximize: bool) -> Verdict:
    """From the values of both for each seed; `seen`: what the search saw of the winner."""
    sign = -1.0 if maximize else 1.0
    differences = np.asarray(winner, np.float64) - np.asarray(original, np.float64)
    n, mean = len(differences), float(differences.mean())
    half = None
    if n > 1:
        half = _T.get(n - 1, 2.0) * float(differences.std(ddof=1)) / math.sqrt(n)
    of_winner = float(np.mean(winner))
    better = sign * mean < 0
    certain = half is not None and abs(mean) > half
    return Verdict(of_winner, float(np.mean(original)), mean, half, sign * (of_winner - seen), n, better, certain)

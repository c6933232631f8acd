"""The search space: which keys of a recipe are varied, and between what.

optim.lr=1e-4..1e-1        a number, on a logarithmic scale where the ends are a factor of 10 or more apart
model.layers=2..8          a whole number
optim.name=[adamw, muon]   one of several values
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import yaml

from zenspeed.errors import InputError
from zenspeed.recipe import Recipe

Make = Callable[[Sequence[str]], Recipe]
"""The recipe with more `section.key=value` on top."""

_FIXED = {
    "run": "names the run or is its luck",
    "evaluate": "changes what is measured",
    "data.source": "changes what is measured",
    "data.sources": "changes what is measured",
    "data.validation": "changes what is measured",
    "data.test": "is looked at once, at the end",
    "log": "changes nothing that could be better",
    "checkpoint": "changes nothing that could be better",
    "sample": "changes nothing that could be better",
}


class Dimension(NamedTuple):
    """One key and its values: `choices`, or the numbers from `low` to `high`."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def log(self) -> bool:
        return not self.choices and self.low > 0 and self.high / self.low >= 10

    def ends(self) -> list[Any]:
        """Values at which the space ends."""
        return list(self.choices) or [int(self.low) if self.whole else self.low, int(self.high) if self.whole else self.high]

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key} of {', '.join(map(str, self.choices))}"
        return f"{self.key} {self.ends()[0]:g} … {self.ends()[1]:g}{', logarithmic' if self.log else ''}"


def assign(key: str, value: Any) -> str:
    """`key=value` as `--set` takes it."""
    return f"{key}={json.dumps(value)}"


def parse(searches: Sequence[str]) -> list[Dimension]:
    """Dimensions of `--search` options.

    Raises:
        InputError: one is no space, is empty, or is given twice.
    """
    found = [_parse_one(text) for text in searches]
    keys = [d.key for d in found]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"--search {twice}: given twice; keep one")
    return found


def _parse_one(text: str) -> Dimension:
    key, separator, values = text.partition("=")
    key, values = key.strip(), values.strip()
    if not separator or not key or not values:
        raise InputError(f"--search {text}: expected KEY=LOW..HIGH or KEY=[A, B], as in --search optim.lr=1e-4..1e-1")
    for prefix, why in _FIXED.items():
        if key == prefix or key.startswith(prefix + "."):
            raise InputError(f"--search {key}: is not to be chosen: it {why}; take it away")
    if values.startswith("["):
        try:
            choices = [_number(v) for v in yaml.safe_load(values)]
        except yaml.YAMLError:
            raise InputError(f"--search {text}: {values!r} is not a list; write {key}=[A, B]") from None
        distinct = list({json.dumps(c, default=str): c for c in choices}.values())
        if len(distinct) < 2:
            raise InputError(f"--search {text}: {len(distinct)} value(s), nothing to choose from; give two, or --set {key}=…")
        return Dimension(key, tuple(distinct))
    low_text, separator, high_text = values.partition("..")
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        raise InputError(f"--search {text}: expected {key}=LOW..HIGH or {key}=[A, B]") from None
    if math.isinf(low) or math.isinf(high):
        raise InputError(f"--search {text}: has no end; give two numbers, as in --search optim.lr=1e-4..1e-1")
    if not low < high:
        raise InputError(
            f"--search {text}: is empty: {low_text.strip()} is not below {high_text.strip()}; write the lower first"
        )
    whole = all(part.strip().lstrip("-").isdigit() for part in (low_text, high_text))
    return Dimension(key, (), low, high, whole)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as text."""
    try:
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value
    except ValueError:
        return value


def check(dimensions: Sequence[Dimension], make: Make, sets: Sequence[str], metrics: Sequence[str]) -> None:
    """Raises InputError where a key is unknown, an end cannot be, a key is also set, or the metric would not be comparable."""
    if not dimensions:
        raise InputError("the search space is empty; give --search KEY=LOW..HIGH, such as --search optim.lr=1e-3..1e-1")
    given = {part.partition("=")[0].strip() for part in sets}
    for dimension in dimensions:
        key = dimension.key
        if key in given:
            raise InputError(f"--search {key}: contradicts --set {key}, which gives it one value; take one of them away")
        if key.startswith("tokenizer.") and {"loss", "perplexity"} & set(metrics):
            raise InputError(
                f"--search {key}: a loss per token is not comparable between vocabularies; take --metric bits_per_byte"
            )
        for value in dimension.ends():
            try:
                make([assign(key, value)])
            except InputError as error:
                said = str(error).replace(f"--set {assign(key, value)}", f"--search {key}={value}")
                raise InputError(said if said.startswith("--search") else f"--search {key}={value}: {said}") from None

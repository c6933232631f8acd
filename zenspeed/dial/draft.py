"""What is settled before the text is prepared: what the user gave, time, vocabulary, share to hold out. No torch here."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from zenspeed.config import validate
from zenspeed.data.files import PYTHON_DOCS, source_files
from zenspeed.data.source import documents, sources_of
from zenspeed.data.streams import COMPRESSED, size_of
from zenspeed.dial.ends import DEFAULT_SECONDS, LEAST_SECONDS, Ends
from zenspeed.dial.laws import vocabulary
from zenspeed.errors import InputError
from zenspeed.recipe import DataConfig, Recipe

_PYTHON_DOCS_BYTES = 2.3e6
_HELD_OUT_BYTES_PER_SECOND = 2000.0  # of the budget: what is evaluated in about a fiftieth of it
_CHOSEN = ("model", "tokenizer", "optim", "train", "task")  # sections about which a recipe with the dial says nothing


class Draft(NamedTuple):
    """A recipe whose text can be prepared."""

    recipe: Recipe
    given: frozenset[str]
    """`section.key` of what the user gave."""
    ends: Ends


def is_plain(recipe: Recipe) -> bool:
    """Nothing but a text and perhaps a time is given: then the dial chooses unasked."""
    return all(name == "train.minutes" or name.split(".")[0] not in _CHOSEN for name in _given(recipe))


def draft(recipe: Recipe, ends: Ends) -> Draft:
    """The recipe, as loaded from what the user gave, with a vocabulary and a share to hold out.

    Raises:
        InputError: what was given and the dial contradict each other, or the time is too short for anything.
    """
    given = _given(recipe)
    ends = _with_minutes(recipe, ends)
    _check(recipe, given)
    size = _source_bytes(recipe.data)
    seconds = ends.seconds or (DEFAULT_SECONDS if ends.target is None else 600.0)
    data = recipe.model_dump(mode="json")
    if "data.validation" not in given:
        share = min(0.05, _HELD_OUT_BYTES_PER_SECOND * seconds / size)
        data["data"]["validation"] = float(f"{share:.1g}")
    if not any(name.startswith("tokenizer.") for name in given):
        data["tokenizer"] |= {"vocab_size": vocabulary(size, seconds, _is_wide(recipe.data)), "or_fewer": True}
    return Draft(validate(Recipe, data), given, ends)


def _given(recipe: Recipe) -> frozenset[str]:
    return frozenset(
        f"{section}.{key}" for section in recipe.model_fields_set for key in getattr(recipe, section).model_fields_set
    )


def _with_minutes(recipe: Recipe, ends: Ends) -> Ends:
    minutes = recipe.train.minutes
    if minutes is None:
        return ends
    if ends.seconds is not None:
        raise InputError(f"--budget: train.minutes ({minutes:g}) says the time as well; give one of them")
    if 60 * minutes < LEAST_SECONDS:
        raise InputError(
            f"train.minutes: nothing can be trained in {60 * minutes:g} s: starting, measuring this machine and writing the "
            f"model take about {LEAST_SECONDS:g} s; give 0.5 or more"
        )
    return ends._replace(seconds=60 * minutes)


def _check(recipe: Recipe, given: frozenset[str]) -> None:
    train, model = recipe.train, recipe.model
    for name, value in (("steps", train.steps), ("epochs", train.epochs)):
        if value is not None:
            raise InputError(
                f"--budget: train.{name} ({value:g}) and a budget both end the run; give one of them: the dial finds "
                "the number of updates by itself"
            )
    if recipe.task.kind != "language_model":
        raise InputError(
            f"--budget: is for language models, not for task.kind={recipe.task.kind}; leave it away: "
            "zenspeed train DATA --task NAME chooses the rest, and --set train.minutes=… says the time"
        )
    for name in ("model.huggingface", "model.from_run"):
        if name in given:
            raise InputError(f"--budget: chooses a model, and {name} gives one; leave one of them away")
    if model.architecture != "decoder":
        raise InputError(
            f"--budget: chooses among decoders, not model.architecture={model.architecture}; leave one of them away"
        )


def _source_bytes(data: DataConfig) -> float:
    """About how much text there is, by the length of the files."""
    total = 0.0
    for part in sources_of(data, data.source):
        if part.source == PYTHON_DOCS:
            total += _PYTHON_DOCS_BYTES
            continue
        files = source_files(part.source, split=data.split, endpoint=data.endpoint, fetch=data.fetch)
        total += sum(size_of(path) * (4 if path.suffix in (*COMPRESSED, ".parquet") else 1) for path in files)
    return max(1.0, total)


def _is_wide(data: DataConfig) -> bool:
    """Whether most bytes of the first documents belong to characters of several bytes."""
    if any(part.source == PYTHON_DOCS for part in sources_of(data, data.source)):
        return False
    beginning = "".join(itertools.islice(documents(data, data.source), 20))[:10_000].encode("utf-8", "replace")
    return sum(byte >= 0x80 for byte in beginning) > len(beginning) / 2

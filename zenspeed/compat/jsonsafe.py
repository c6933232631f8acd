"""Plain data as JSON and back, tuples and keys that are not text included. What JSON cannot say is refused with its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zenspeed.config import InputError

PAIRS, TUPLE = "__pairs__", "__tuple__"


def encode(value: Any, path: str) -> Any:
    """`value` in JSON's types.

    Raises:
        InputError: something in it is not plain data; its path and type are named.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, tuple):
        return {TUPLE: [encode(v, f"{path}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [encode(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        if all(isinstance(k, str) and k not in (PAIRS, TUPLE) for k in value):
            return {k: encode(v, f"{path}.{k}") for k, v in value.items()}
        return {PAIRS: [[encode(k, path), encode(v, f"{path}[{k!r}]")] for k, v in value.items()]}
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise InputError(
        f"{path}: a {kind} cannot be saved; a checkpoint holds plain data only (numbers, text, lists, dicts), so that loading "
        "one never runs code: save vars(x), x.tolist() or a file of its own"
    )


def decode(value: Any) -> Any:
    """What was given to `encode`."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {TUPLE}:
            return tuple(decode(v) for v in value[TUPLE])
        if set(value) == {PAIRS}:
            return {decode(k): decode(v) for k, v in value[PAIRS]}
        return {k: decode(v) for k, v in value.items()}
    return value

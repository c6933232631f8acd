"""What every config shares: strict loading, overrides, saving, and errors that name the place and the fix.

A config is a frozen pydantic model. An unknown key, a wrong type or a value out of range becomes an `InputError` of one
line that names the file, the line in it, the key, the value and the nearest right key:

    recipe.yaml:7: optim.learning_rate: unknown key; did you mean optim.lr? (keys of optim: betas, lr, name, …)

YAML is read with its line numbers kept, so the place is where the user wrote it; a value given by `--set` is named as such.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zenspeed.errors import InputError, missing

C = TypeVar("C", bound="Config")
__all__ = ["Config", "InputError", "dump", "load", "merge", "nearest", "read_text", "validate", "write_atomically"]

Place = dict[tuple[str, ...], str]  # path of a key -> where the user wrote it


class Config(BaseModel):
    """Base of every section of a recipe: frozen, strict, its field docstrings are its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    exclusive: ClassVar[tuple[str, ...]] = ()
    """Keys of which only one may be given: an override of one takes the others away from file and defaults."""
    called: ClassVar[str] = "a recipe"
    """What a user calls a file of it."""
    outline: ClassVar[str] = "sections (data:, model:, train: …)"
    """What such a file is a mapping of."""


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """'; did you mean X?' for the one of `names` that is closest or has the initials of `name`, or an empty string."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    initials = "".join(word[0] for word in name.split("_") if word)
    close = close or [n for n in names if n == initials]
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def read_text(path: Path) -> str:
    """The UTF-8 text of a small file; an `InputError` names what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def load(kind: type[C], path: Path | None = None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> C:
    """A config from defaults, then `base`, then the YAML file at `path`, then `section.key=value` overrides, later winning.

    `section=null` takes away what was said of a section before.

    Raises:
        InputError: the file is not there or not YAML, or a key, type, range or combination is wrong.
    """
    data: dict[str, Any] = {}
    places: Place = {}
    merge(data, base or {})
    if path is not None:
        from_file, places = _parse_yaml(kind, path)
        merge(data, from_file)
    parsed = [_parse_override(override) for override in overrides]
    for keys, _ in parsed:
        _drop_exclusive(kind, data, keys)
    for override, (keys, value) in zip(overrides, parsed, strict=True):
        if value is None and _section(kind, keys):
            _take_away(data, keys)
        else:
            merge(data, _nest(keys, value))
        places = {k: v for k, v in places.items() if k[: len(keys)] != keys} | {keys: f"--set {override}"}
    return validate(kind, data, places, str(path) if path else "recipe")


def validate(kind: type[C], data: Mapping[str, Any], places: Place | None = None, name: str = "recipe") -> C:
    """`data` as a `kind`; all that pydantic finds wrong, one line each, becomes one `InputError`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [_explain(kind, dict(e), places or {}, name) for e in error.errors()]
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def dump(config: Config) -> str:
    """The config as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Deep update: mappings are merged key by key, everything else is replaced."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def write_atomically(path: Path, text: str) -> None:
    """Writes beside `path`, flushes to disk, renames: a reader sees the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _drop_exclusive(kind: type[Config], data: dict[str, Any], keys: tuple[str, ...]) -> None:
    section, inner = _section(kind, keys[:-1]), data
    for key in keys[:-1]:
        inner = inner.get(key, {}) if isinstance(inner, dict) else {}
    if section and isinstance(inner, dict) and keys[-1] in section.exclusive:
        for other in section.exclusive:
            inner.pop(other, None)


def _take_away(data: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys[:-1]:
        data = data.get(key, {})
    data.pop(keys[-1], None)


def _nest(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override}: expected section.key=value, as in --set optim.lr=3e-4")
    try:
        return tuple(key.strip().split(".")), _number(yaml.safe_load(text))
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {text!r} is not a YAML value; quote it: --set '{key}=\"…\"'") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 (no dot) as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if value[:1].isdigit() or value[:1] in "+-." else value
        except ValueError:
            return value
    return value


def _parse_yaml(kind: type[Config], path: Path) -> tuple[dict[str, Any], Place]:
    text = read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        found = root.tag.rpartition(":")[2]
        raise InputError(f"{path}: {kind.called} is a mapping of {kind.outline}, this is a {found}")
    places: Place = {}
    return _construct(root, (), places, path), places


def _construct(node: yaml.Node, keys: tuple[str, ...], places: Place, path: Path) -> Any:
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, place = str(key_node.value), f"{path}:{key_node.start_mark.line + 1}"
            if key in out:
                raise InputError(f"{place}: {'.'.join((*keys, key))}: given twice; keep one")
            places[(*keys, key)] = place
            out[key] = _construct(value_node, (*keys, key), places, path)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*keys, str(i)), places, path) for i, item in enumerate(node.value)]
    constructor = yaml.SafeLoader("")
    return _number(constructor.construct_object(node, deep=True))


def _explain(kind: type[Config], error: dict[str, Any], places: Place, name: str) -> str:
    keys = tuple(str(k) for k in error["loc"] if not str(k).startswith(("function-", "literal[", "constrained-")))
    key = ".".join(keys)
    section = _section(kind, keys[:-1])
    place = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), name)
    known = sorted(section.model_fields) if section else []
    if error["type"] == "extra_forbidden":
        hint = nearest(keys[-1], known, "".join(f"{k}." for k in keys[:-1])) or _elsewhere(kind, keys[-1])
        return f"{place}: {key}: unknown key{hint} (keys of {'.'.join(keys[:-1]) or kind.called}: {', '.join(known)})"
    if error["type"] == "missing":
        return f"{place}: {key}: is missing; give it"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {key + ': ' if key else ''}{message}"
    return f"{place}: {key}: {error['input']!r} is not valid: {message[0].lower() + message[1:]}"


def _elsewhere(kind: type[Config], key: str) -> str:
    for section, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Config) and key in inner.model_fields:
            return f"; did you mean {section}.{key}?"
    return ""


def _section(kind: type[Config], keys: tuple[str, ...]) -> type[Config] | None:
    section: Any = kind
    for key in keys:
        field = section.model_fields.get(key) if isinstance(section, type) and issubclass(section, Config) else None
        section = field.annotation if field else None
    return section if isinstance(section, type) and issubclass(section, Config) else None

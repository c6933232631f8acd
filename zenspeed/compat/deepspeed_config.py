"""A DeepSpeed config, read strictly: `load` gives a frozen tree whose names are DeepSpeed's own.

DeepSpeed itself ignores unknown keys at the top level and in several sections, so that a misspelt key trains another model
than was meant. Here every key is known (`deepspeed_keys`) and is honoured, reported as having no effect, or refused with
the reason; an unknown one is an error that names the nearest. The place named is the line of the file.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field

from zenspeed.compat.deepspeed_keys import (
    ALIASES,
    AutoAllowed,
    DeepSpeedKeys,
    Inner,
    NoEffect,
    Refused,
    Status,
    TorchAutocast,
    section_of,
    status_of,
)
from zenspeed.config import Config, InputError, nearest, read_text, validate

logger = logging.getLogger("zenspeed")
Path_ = tuple[str, ...]
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


class DeepSpeedConfig(DeepSpeedKeys):
    """The tree of `DeepSpeedKeys` with the three batch sizes settled, and the dict it was made from."""

    train_batch_size: int = 0
    train_micro_batch_size_per_gpu: int = 0
    gradient_accumulation_steps: int = 0
    raw: dict[str, Any] = Field({})
    """The config as it was given."""
    no_effect: tuple[str, ...] = ()
    """Keys of it that change nothing here, each with its reason."""


def load(
    config: dict[str, Any] | str | Path | None, *, args: Any = None, world_size: int, batch_required: bool = True
) -> DeepSpeedConfig:
    """The config in `config`, or in the file that `args.deepspeed_config` names.

    Args:
        world_size: data-parallel ranks, for the batch equation.
        batch_required: False where only sections are of interest, as in `zero.Init`: the batch sizes may then be missing.

    Raises:
        InputError: anything in it that cannot be used; every line names place, key, value and fix.
    """
    if config is None:
        config = getattr(args, "deepspeed_config", None) or getattr(args, "deepscale_config", None)
    if config is None:
        raise InputError("no DeepSpeed config: give config= a dict or a file, or --deepspeed_config FILE")
    raw, places, name = _read(config)
    reader = _Reader(places, name)
    data = reader.section(DeepSpeedKeys, _old_forms(raw), ())
    if reader.errors:
        raise InputError("\n".join(reader.errors))
    if reader.no_effect:
        keys_of = ", ".join(line.partition(": ")[0] for line in reader.no_effect)
        _log_once(logging.WARNING, f"{name}: accepted, no effect here (docs/deepspeed.md says why): {keys_of}")
    for line in reader.no_effect:
        _log_once(logging.INFO, f"{name}: {line}")
    validate(DeepSpeedKeys, data, places, name)  # types of what has no effect count too
    for path in reader.without_effect:
        _remove(data, path)
    keys = validate(DeepSpeedKeys, data, places, name)
    if keys.dump_state:
        _log_once(logging.WARNING, f"{name}: {json.dumps(raw, default=str)}")
    _check(keys, name)
    sizes = _batch(keys, world_size, name, batch_required)
    fields = {k: getattr(keys, k) for k in DeepSpeedKeys.model_fields}
    if keys.amp.enabled:
        fields["torch_autocast"] = TorchAutocast(enabled=True, dtype="fp16" if torch.accelerator.is_available() else "bf16")
    return DeepSpeedConfig.model_construct(**fields | sizes, raw=raw, no_effect=tuple(reader.no_effect))


# Reading ------------------------------------------------------------------------------------------------------------------


def _read(config: Any) -> tuple[dict[str, Any], dict[Path_, str], str]:
    if isinstance(config, Mapping):
        return dict(config), {}, "config"
    if not isinstance(config, str | os.PathLike):
        raise InputError(f"config: a {type(config).__name__}; give a dict or the path of a JSON file")
    path = Path(config)
    text = read_text(path)
    places: dict[Path_, str] = {}
    try:
        node = yaml.compose(re.sub(r"\t", " ", text), Loader=yaml.SafeLoader)  # JSON is YAML, whose reader keeps the lines
    except yaml.YAMLError:
        node = None
    value = _parse_json(text, path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: a DeepSpeed config is an object {{…}}, this is a {type(value).__name__}")
    if node is not None:
        _note_places(node, (), places, path)
    return value, places, str(path)


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text.strip() else ""
        if re.search(r"(^|[\s,{\[])(//|/\*|#)", line):
            hint = "JSON has no comments; remove it"
        elif re.match(r"\s*[}\]]", text[error.pos :]) or re.search(r",\s*$", text[: error.pos]):
            hint = "a comma before a closing bracket; remove it"
        else:
            hint = f"{error.msg[0].lower() + error.msg[1:]}, column {error.colno}"
        raise InputError(f"{path}:{error.lineno}: not JSON: {hint}") from None
    except _TwiceError as error:
        lines = [n for n, line in enumerate(text.splitlines(), 1) if f'"{error}"' in line]
        raise InputError(f"{path}:{lines[-1] if lines else 1}: {error}: given twice in one section; keep one") from None


class _TwiceError(Exception):
    """A key that is twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _TwiceError(key)
        out[key] = value
    return out


def _note_places(node: yaml.Node, keys: Path_, places: dict[Path_, str], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*keys, str(key.value))
            places[inner] = f"{path}:{key.start_mark.line + 1}"
            _note_places(value, inner, places, path)


# Walking the keys ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Walks a config along the table: other names, unknown keys, "auto", refusals, and what has no effect."""

    def __init__(self, places: Mapping[Path_, str], name: str) -> None:
        self.places, self.name = places, name
        self.errors: list[str] = []
        self.no_effect: list[str] = []
        self.without_effect: list[Path_] = []
        self.hugging_face = _inside_hugging_face()

    def section(self, kind: type[Config], data: Mapping[str, Any], path: Path_) -> dict[str, Any]:
        """`data` with today's names and without what asks for nothing; errors are collected."""
        out: dict[str, Any] = {}
        for given, value in data.items():
            full = ".".join((*path, str(given)))
            key = ALIASES.get(full, full).rpartition(".")[2]
            if full in ALIASES and key in data:
                self.error((*path, str(given)), f"and {ALIASES[full]} are the same setting; keep {ALIASES[full]}")
            field = kind.model_fields.get(key)
            if field is None:
                self.unknown((*path, str(given)), kind)
                continue
            here, section = (*path, key), section_of(field)
            if full.partition(".")[2].startswith("cpu_offload") and isinstance(value, bool) and section:
                value = {"device": "cpu" if value else "none"}
            if value == "auto" and not any(isinstance(m, AutoAllowed) for m in field.metadata):
                self.auto((*path, str(given)))
            elif section is not None:
                self.inner_section(section, value, here, out)
            elif self.keep(status_of(field), value, field.default, (*path, str(given))):
                if isinstance(status_of(field), NoEffect):
                    self.without_effect.append(here)
                inner = next((m for m in field.metadata if isinstance(m, Inner)), None)
                free = isinstance(value, Mapping) and status_of(field) is None
                out[key] = self.free(value, here, inner) if free else value
        return out

    def inner_section(self, kind: type[Config], value: Any, path: Path_, out: dict[str, Any]) -> None:
        if isinstance(value, Mapping):
            out[path[-1]] = self.section(kind, value, path)
        elif value is not None:
            self.error(path, f"{value!r} is not a section; expected an object {{…}} with keys {', '.join(kind.model_fields)}")

    def free(self, value: Mapping[str, Any], path: Path_, inner: Inner | None) -> dict[str, Any]:
        """The arguments of an optimizer or a scheduler: the class itself knows which it takes."""
        out = {}
        for key, item in value.items():
            status = inner.statuses.get(key) if inner else None
            if item == "auto":
                self.auto((*path, key))
            elif self.keep(status, item, None, (*path, key)) and not isinstance(status, NoEffect):
                out[key] = item
        return out

    def keep(self, status: Status | None, value: Any, default: Any, path: Path_) -> bool:
        """False: the value asks for nothing, or was refused and noted."""
        if status is None:
            return True
        self.names_inside(status, value, path)
        if isinstance(status, NoEffect):
            self.no_effect.append(f"{'.'.join(path)}: no effect here: {status.why}")
            return True
        if not _is_off(status, value, default):
            self.error(path, f"{_short(value)} is refused: {status.why}")
        return False

    def names_inside(self, status: Status, value: Any, path: Path_) -> None:
        """Unknown names inside a section that is refused or has no effect, at any depth that is listed."""
        names = status.keys.split()
        if not names or not isinstance(value, Mapping):
            return
        for key, item in value.items():
            if key not in names:
                known = [n for n in names if "." not in n]
                self.error((*path, str(key)), f"unknown key{nearest(str(key), known)} (keys: {', '.join(known)})")
            deeper = " ".join(n.partition(".")[2] for n in names if n.startswith(f"{key}."))
            self.names_inside(NoEffect("", deeper), item, (*path, str(key)))

    def unknown(self, path: Path_, kind: type[Config]) -> None:
        section = ".".join(path[:-1])
        known = [*kind.model_fields, *(k.rpartition(".")[2] for k in ALIASES if k.rpartition(".")[0] == section)]
        hint = _elsewhere(path[-1], section) or nearest(path[-1], known, section + "." if section else "")
        shown = f" (keys: {', '.join(sorted(known))})" if section else ""
        self.error(path, f"unknown key{hint}{shown}")

    def auto(self, path: Path_) -> None:
        if self.hugging_face:
            self.no_effect.append(f'{".".join(path)}: "auto" was not filled in by Hugging Face; the default is used')
        else:
            self.error(path, '"auto" is filled in by Hugging Face\'s Trainer and Accelerate only; write the value')

    def error(self, path: Path_, message: str) -> None:
        place = next((self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places), self.name)
        self.errors.append(f"{place}: {'.'.join(path)}: {message}")


def _remove(data: dict[str, Any], path: Path_) -> None:
    """What has no effect stays at its default, so that it cannot have one."""
    for key in path[:-1]:
        data = data[key]
    data.pop(path[-1], None)


def _old_forms(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`zero_optimization: true`, the form of the first versions, is stage 1."""
    data = dict(raw)
    if isinstance(data.get("zero_optimization"), bool):
        data["zero_optimization"] = {"stage": int(data["zero_optimization"])}
    return data


def _is_off(status: Refused, value: Any, default: Any) -> bool:
    if value is None or value is False or value in ({}, []) or (value == default and type(value) is type(default)):
        return True
    if any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in status.off):
        return True
    return status.switch is not None and isinstance(value, Mapping) and value.get(status.switch) in (None, False, 0)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _elsewhere(key: str, section: str) -> str:
    """'; did you mean fp16.loss_scale?' for a key that stands in another section."""
    for name, field in DeepSpeedKeys.model_fields.items():
        inner = section_of(field)
        if inner is not None and key in inner.model_fields:
            return f"; did you mean {name}.{key}?"
    return f"; did you mean {key} at the top level?" if section and key in DeepSpeedKeys.model_fields else ""


def _inside_hugging_face() -> bool:
    """Accelerate says so in the environment; Transformers keeps a config of its own alive."""
    module = sys.modules.get("transformers.integrations.deepspeed")
    alive = getattr(module, "_hf_deepspeed_config_weak_ref", None)
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or (alive is not None and alive() is not None)


_logged: set[str] = set()


def _log_once(level: int, line: str) -> None:
    """Once per process, and only by the first rank."""
    if line not in _logged and os.environ.get("RANK", "0") == "0":
        logger.log(level, "%s", line)
    _logged.add(line)


# Combinations -------------------------------------------------------------------------------------------------------------


def _check(keys: DeepSpeedKeys, name: str) -> None:
    """What no single key shows."""
    zero = keys.zero_optimization
    chosen = [k for k in ("fp16", "bf16", "amp", "torch_autocast") if getattr(keys, k).enabled]
    if len(chosen) > 1 and chosen != ["amp", "torch_autocast"]:
        raise InputError(f"{name}: {' and '.join(f'{k}.enabled' for k in chosen)} are all true; keep one")
    for section in ("offload_optimizer", "offload_param"):
        device = getattr(zero, section).device
        place = f"{name}: zero_optimization.{section}.device"
        if device == "nvme":
            raise InputError(f"{place}: nvme is refused, nothing is offloaded to NVMe; use cpu or none")
        need = 3 if section == "offload_param" else 1
        if device == "cpu" and zero.stage < need:
            raise InputError(f"{place}: cpu needs zero_optimization.stage {need} or more, it is {zero.stage}")
    wanted = keys.data_types.param_dtype
    mode = "fp16" if keys.fp16.enabled else "bf16" if keys.bf16.enabled else "fp32"
    names = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
    if wanted is not None and names.get(wanted.removeprefix("torch."), wanted) != mode:
        raise InputError(
            f"{name}: data_types.param_dtype: {wanted}, but fp16.enabled and bf16.enabled make it {mode}; keep one"
        )
    for section in ("optimizer", "scheduler"):
        part = getattr(keys, section)
        if part is not None and part.type is None and part.params:
            raise InputError(f"{name}: {section}.params without {section}.type; name the {section}")


def _batch(keys: DeepSpeedKeys, ranks: int, name: str, required: bool) -> dict[str, int]:
    """train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × ranks, from the ones given."""
    total, micro, steps = (getattr(keys, k) for k in BATCH)
    if keys.data_parallel_size not in (None, ranks):
        raise InputError(f"{name}: data_parallel_size: {keys.data_parallel_size}, but there are {ranks} ranks; remove it")
    if total is None and micro is None:
        if required:
            raise InputError(f"{name}: train_batch_size or train_micro_batch_size_per_gpu is needed, neither is given")
        micro = 1
    if total is None:
        micro, steps = micro or 1, steps or 1
        total = micro * steps * ranks
    elif micro is None:
        steps = steps or 1
        micro = total // (steps * ranks)
    else:
        steps = steps or total // (micro * ranks)
    if micro < 1 or steps < 1 or total != micro * steps * ranks:
        given = " and ".join(f"{k} {v}" for k in BATCH if (v := getattr(keys, k)) is not None)
        raise InputError(
            f"{name}: train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × ranks does not hold:"
            f" {total} ≠ {micro} × {steps} × {ranks} (given: {given}); {_repair(keys, total, ranks)}"
        )
    return dict(zip(BATCH, (total, micro, steps), strict=True))


def _repair(keys: DeepSpeedKeys, total: int, ranks: int) -> str:
    micro, steps = keys.train_micro_batch_size_per_gpu, keys.gradient_accumulation_steps
    if micro is not None and steps is not None:
        return f"train_batch_size {micro * steps * ranks} would fit, or leave one of the three out"
    unit = (micro or steps or 1) * ranks
    return f"train_batch_size must be a multiple of {unit}: {max(1, total // unit) * unit} would fit"

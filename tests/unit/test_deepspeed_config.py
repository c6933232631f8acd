"""DeepSpeed configs: files of the kinds found in the wild, every key of the table, and everything that can be wrong."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from zenspeed.compat import deepspeed_config
from zenspeed.compat.deepspeed_config import load
from zenspeed.compat.deepspeed_keys import (
    ALIASES,
    AutoAllowed,
    DeepSpeedKeys,
    Inner,
    NoEffect,
    Refused,
    Status,
    markdown,
    section_of,
    status_of,
    table,
)
from zenspeed.config import Config
from zenspeed.errors import InputError

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "data" / "ds_configs"
KNOWN = json.loads((Path(__file__).parent / "data" / "deepspeed_keys.json").read_text(encoding="utf-8"))
"""Names of every key that DeepSpeed 0.19.8 reads or refuses, from its config models."""


def marked(kind: type[Config] = DeepSpeedKeys, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every field of the tree with its path."""
    out = []
    for name, field in kind.model_fields.items():
        out.append(((*path, name), field))
        if section := section_of(field):
            out += marked(section, (*path, name))
    return out


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def with_batch(config: dict[str, Any]) -> dict[str, Any]:
    return {"train_batch_size": 4} | config


def at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = getattr(config, key)
    return config


FIELDS = [(path, field) for path, field in marked() if section_of(field) is None]
BY_STATUS: dict[type[Status] | None, list[Any]] = {None: [], NoEffect: [], Refused: []}
for _path, _field in FIELDS:
    _mark = status_of(_field)
    BY_STATUS[type(_mark) if _mark else None].append(pytest.param(_path, _field, id=".".join(_path)))


def sample(field: Any, path: tuple[str, ...]) -> Any:
    """A value that the field's type takes and that is not its default."""
    special: dict[str, Any] = {
        "fp16.loss_scale": 128, "fp16.min_loss_scale": 4, "zero_optimization.stage": 2, "data_parallel_size": 1,
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
        "steps_per_print": 7, "checkpoint.tag_validation": "fail", "data_types.param_dtype": "fp32",
        "zero_optimization.offload_optimizer.device": "none", "zero_optimization.offload_param.device": "none",
        "optimizer.params": {"lr": 1}, "scheduler.params": {"warmup_num_steps": 1}, "gradient_allreduce_op": "sum",
    }  # fmt: skip
    key = ".".join(path)
    if key in special:
        return special[key]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int | float):
        return field.default + 1
    kinds = str(field.annotation)
    for word, value in (
        ("Literal", "bf16"),
        ("list", ["a"]),
        ("dict", {}),
        ("str", "x"),
        ("float", 2.0),
        ("int", 3),
        ("bool", True),
    ):
        if re.search(rf"\b{word}\b", kinds):
            return value
    return None if not get_args(field.annotation) and field.annotation is Any else False


def together(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A config with that one key, and what the key does not make sense without."""
    config = with_batch(nested(path, value))
    if path[0] in ("optimizer", "scheduler") and path[-1] != "type":
        config[path[0]]["type"] = "AdamW"
    return config


@pytest.mark.parametrize(("path", "field"), BY_STATUS[None])
def test_honoured_keys_arrive_in_the_tree(path: tuple[str, ...], field: Any) -> None:
    value = sample(field, path)
    got = at(load(together(path, value), world_size=1), path)
    assert got == (value.capitalize() if path[-1] == "tag_validation" else value)
    assert type(got) is not str or isinstance(value, str)


@pytest.mark.parametrize(("path", "field"), BY_STATUS[NoEffect])
def test_keys_without_effect_are_accepted_and_reported_once(
    path: tuple[str, ...], field: Any, caplog: pytest.LogCaptureFixture
) -> None:
    deepspeed_config._logged.clear()
    mark = status_of(field)
    assert isinstance(mark, NoEffect)
    with caplog.at_level(logging.INFO, "zenspeed"):
        for _ in range(2):
            config = load(together(path, sample(field, path)), world_size=1)
    assert [line for line in config.no_effect if line.startswith(".".join(path)) and mark.why in line]
    assert at(config, path) == field.get_default()  # so that it cannot have an effect
    assert sum(mark.why in r.message and ".".join(path) in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(("path", "field"), BY_STATUS[Refused])
def test_refused_keys_name_themselves_and_the_reason(path: tuple[str, ...], field: Any) -> None:
    mark = status_of(field)
    assert isinstance(mark, Refused)
    on: Any = {mark.switch: True} if mark.switch else {mark.keys.split()[0]: 1} if mark.keys else 7
    if field.default is True:
        on = False if path[-1] == "managed_gradient_accumulation" else on
    if path[-1] == "managed_gradient_accumulation":
        on = "off"
    with pytest.raises(InputError) as error:
        load(together(path, on), world_size=1)
    assert ".".join(path) in str(error.value) and mark.why in str(error.value)
    off: list[Any] = [None, *mark.off, field.default]
    if mark.keys:
        off.append({})
    if mark.switch:
        off.append({mark.switch: False})
    for value in off:
        load(together(path, value), world_size=1)


@pytest.mark.parametrize(("path", "field"), [p for v in BY_STATUS.values() for p in v])
def test_auto_is_refused_by_name(path: tuple[str, ...], field: Any) -> None:
    if any(isinstance(m, AutoAllowed) for m in field.metadata):
        load(together(path, "auto"), world_size=1)
        return
    with pytest.raises(InputError, match=r'"auto" is filled in by Hugging Face') as error:
        load(together(path, "auto"), world_size=1)
    assert ".".join(path) in str(error.value)


SECTIONS = [
    (path, section) for path, field in [((), None), *marked()] if (section := section_of(field) if field else DeepSpeedKeys)
]


@pytest.mark.parametrize(("path", "section"), SECTIONS, ids=lambda v: ".".join(v) if isinstance(v, tuple) else "")
def test_unknown_keys_are_refused_at_every_level(path: tuple[str, ...], section: type[Config]) -> None:
    right = max(section.model_fields, key=len)
    wrong = right[:-2] + right[-1] + right[-2] + "s"
    with pytest.raises(InputError) as error:
        load(with_batch(nested((*path, wrong), 1)), world_size=1)
    assert f"{'.'.join((*path, wrong))}: unknown key; did you mean {'.'.join((*path, right))}" in str(error.value)


@pytest.mark.parametrize("name", ["autotuning", "tensor_parallel", "aio", "expert_parallel", "data_efficiency"])
def test_unknown_keys_inside_refused_sections(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}\.enabledd: unknown key"):
        load(with_batch({name: {"enabledd": False}}), world_size=1)


def test_the_table_has_every_key_of_deepspeed() -> None:
    keys = [row.key for row in table()]
    assert len(keys) == len(set(keys))
    assert len(KNOWN) == 338
    assert not set(KNOWN) - set(keys)


def test_inner_names_of_free_sections() -> None:
    for path, field in FIELDS:
        for mark in field.metadata:
            if isinstance(mark, Inner):
                assert path == ("optimizer", "params")
    config = load(
        with_batch({"optimizer": {"type": "Adam", "params": {"lr": 1, "adam_w_mode": False, "torch_adam": True}}}), world_size=1
    )
    assert config.optimizer is not None and config.optimizer.params == {"lr": 1, "adam_w_mode": False}
    assert any("optimizer.params.torch_adam" in line for line in config.no_effect)
    with pytest.raises(InputError, match=r"optimizer\.params\.max_grad_norm.*gradient_clipping"):
        load(with_batch({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1.0}}}), world_size=1)


def test_docs_have_the_table() -> None:
    text = (ROOT / "docs" / "deepspeed.md").read_text(encoding="utf-8")
    assert markdown() in text, "write it anew: python -m zenspeed.compat.deepspeed_keys docs/deepspeed.md"


@pytest.mark.parametrize("old", ALIASES)
def test_other_names(old: str) -> None:
    new = ALIASES[old]
    path, value = tuple(old.split(".")), {"enabled": True} if old == "bfloat16" else True
    if old.endswith(("size", "threshold", "parameters", "distance")):
        value = 17
    config = with_batch(nested(path, value))
    if "cpu_offload" in old:
        config["zero_optimization"]["stage"] = 3
        assert at(load(config, world_size=1), (*new.split("."), "device")) == "cpu"
    elif old == "bfloat16":
        assert load(config, world_size=1).bf16.enabled
    else:
        assert any(line.startswith(f"{old}: no effect here") for line in load(config, world_size=1).no_effect)
    both = with_batch(nested(path, value))
    at_section = both
    for key in path[:-1]:
        at_section = at_section[key]
    at_section[new.rpartition(".")[2]] = value
    with pytest.raises(InputError, match="are the same setting"):
        load(both, world_size=1)


# Files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in sorted(FILES.glob("*.json")) if "auto" not in p.stem], ids=lambda p: p.stem)
def test_files_of_the_wild(path: Path) -> None:
    config = load(path, world_size=4)
    given = json.loads(path.read_text(encoding="utf-8"))
    assert config.raw == given
    sizes = config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps
    assert config.train_batch_size == sizes[0] * sizes[1] * 4
    for section in ("fp16", "bf16"):
        for key, value in given.get(section, {}).items():
            assert getattr(getattr(config, section), key) == value
    assert not config.tensorboard.enabled
    assert config.zero_optimization.stage == (given.get("zero_optimization") or {}).get("stage", 0)


def test_values_of_a_file() -> None:
    config = load(str(FILES / "zero3_bf16.json"), world_size=4)
    zero = config.zero_optimization
    assert (config.train_batch_size, config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (32, 2, 4)
    assert (zero.stage, zero.offload_param.device, zero.offload_optimizer.device) == (3, "cpu", "none")
    assert zero.reduce_bucket_size == 500_000_000 and isinstance(zero.reduce_bucket_size, int)
    assert zero.zero_hpz_partition_size == 2 and zero.stage3_prefetch_bucket_size == 50_000_000
    with pytest.raises(ValidationError, match="frozen"):
        config.gradient_clipping = 2.0  # type: ignore[misc]


def test_auto_is_filled_or_dropped_inside_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    path = FILES / "hugging_face_auto.json"
    with pytest.raises(InputError) as error:
        load(path, world_size=1)
    assert "hugging_face_auto.json:5: optimizer.params.lr:" in str(error.value)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    filled = json.loads(path.read_text(encoding="utf-8")) | {"train_batch_size": 4}
    config = load(filled, world_size=1)
    assert config.zero_optimization.reduce_bucket_size == 500_000_000
    assert config.optimizer is not None and config.optimizer.params == {}
    assert load(json.loads(path.read_text(encoding="utf-8")), world_size=1, batch_required=False).zero_optimization.stage == 3


def test_args_name_the_file() -> None:
    from argparse import Namespace

    args = Namespace(deepspeed_config=str(FILES / "zero2_offload.json"))
    assert load(None, args=args, world_size=2).train_batch_size == 64
    with pytest.raises(InputError, match="--deepspeed_config"):
        load(None, args=Namespace(), world_size=1)
    with pytest.raises(InputError, match="a list; give a dict"):
        load([], world_size=1)  # type: ignore[arg-type]


def test_amp_is_autocast() -> None:
    config = load(with_batch({"amp": {"enabled": True, "opt_level": "O1"}}), world_size=1)
    assert config.amp.enabled and config.torch_autocast.enabled
    assert any("opt_level" in line for line in config.no_effect)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{\n "train_batch_size": 4,\n "train_batch_size": 8\n}', 3, "train_batch_size: given twice"),
        ('{\n "train_batch_size": 4,\n}', 3, "comma before a closing bracket"),
        ('{\n "train_batch_size": 4,  // samples\n "bf16": {}\n}', 2, "no comments"),
        ('{\n # samples\n "train_batch_size": 4\n}', 2, "no comments"),
        ('{\n "fp16": {"enabled": true,\n  "loss_scal": 0},\n "train_batch_size": 4\n}', 3, "did you mean fp16.loss_scale"),
        ('{\n\t"train_batch_size": "4"\n}', 2, "train_batch_size: '4' is not valid"),
        ('{\n "train_batch_size": 4,\n "fp16": {\n  "enabled": "yes"}}', 4, "fp16.enabled: 'yes' is not valid"),
        ('{\n "train_batch_size": 4 "bf16": {}\n}', 2, "not JSON"),
        ("", 1, "not JSON"),
    ],
)
def test_wrong_files_name_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load(path, world_size=1)
    assert f"ds.json:{line}: " in str(error.value) and message in str(error.value)


def test_a_file_that_is_not_there_or_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "ds_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="is an object"):
        load(tmp_path / "ds_config.json", world_size=1)
    with pytest.raises(InputError, match=r"no such file; did you mean .*ds_config\.json"):
        load(tmp_path / "ds_confg.json", world_size=1)


# Combinations -------------------------------------------------------------------------------------------------------------

T, M, A = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


@pytest.mark.parametrize(
    ("given", "ranks", "settled"),
    [
        ({T: 24, M: 3, A: 2}, 4, (24, 3, 2)),
        ({T: 24, M: 3}, 4, (24, 3, 2)),
        ({T: 24, A: 2}, 4, (24, 3, 2)),
        ({M: 3, A: 2}, 4, (24, 3, 2)),
        ({T: 24}, 4, (24, 6, 1)),
        ({M: 3}, 4, (12, 3, 1)),
    ],
)
def test_two_batch_sizes_give_the_third(given: dict[str, int], ranks: int, settled: tuple[int, int, int]) -> None:
    config = load(given, world_size=ranks)
    assert (config.train_batch_size, config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == settled


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({T: 9, M: 4, A: 2}, r"9 ≠ 4 × 2 × 2 .*train_batch_size 16 would fit"),
        ({T: 9, M: 4}, r"9 ≠ 4 × 1 × 2 .*multiple of 8: 8 would fit"),
        ({T: 2, M: 4}, r"2 ≠ 4 × 0 × 2"),
        ({T: 3}, r"3 ≠ 1 × 1 × 2"),
        ({A: 2}, r"neither is given"),
        ({}, r"neither is given"),
        ({T: 0}, r"train_batch_size: 0 is not valid"),
        ({T: -4}, r"train_batch_size: -4 is not valid"),
        ({T: 4, "data_parallel_size": 4}, r"there are 2 ranks"),
    ],
)
def test_contradictory_batch_sizes_show_the_equation(given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(given, world_size=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled and bf16.enabled are all true"),
        ({"fp16": {"enabled": True}, "torch_autocast": {"enabled": True}}, "keep one"),
        ({"fp16": {"loss_scale": -1}}, "fp16.loss_scale: -1 is not valid"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4 is not valid"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "cpu needs zero_optimization.stage 1 or more"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "stage 3 or more, it is 2"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme is refused"),
        ({"data_types": {"param_dtype": "bf16"}}, "make it fp32"),
        ({"optimizer": {"params": {"lr": 1}}}, "name the optimizer"),
        ({"communication_data_type": "int8"}, "communication_data_type: 'int8' is not valid"),
        ({"fp16": 3}, "fp16: 3 is not a section"),
        ({"loss_scale": 0}, "loss_scale: unknown key; did you mean fp16.loss_scale"),
        ({"fp16": {"gradient_clipping": 0}}, "did you mean gradient_clipping at the top level"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping"),
    ],
)
def test_contradictions_and_wrong_values(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        load(with_batch(config), world_size=1)
    assert message in str(error.value)


def test_several_errors_are_all_said() -> None:
    with pytest.raises(InputError) as error:
        load({"train_batch_size": "auto", "zero_optimisation": {}, "elasticity": {"enabled": True}}, world_size=1)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(("path", "field"), BY_STATUS[None])
def test_honoured_keys_are_read_somewhere(path: tuple[str, ...], field: Any) -> None:
    """A key that no line of the engine's door reads is not honoured."""
    folder = ROOT / "zenspeed" / "compat"
    code = "\n".join(p.read_text(encoding="utf-8") for p in folder.glob("*.py") if p.name != "deepspeed_keys.py")
    assert re.search(rf"\.{path[-1]}\b|\"{path[-1]}\"", code), f"{'.'.join(path)} is read nowhere"

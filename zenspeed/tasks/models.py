"""The model of a task: built from the recipe, or begun from weights: of Hugging Face layout, or of an earlier run.

recipe ─ adopt_pretrained ─ recipe with the config of those weights ─ task_model ─ model, and what became of each weight
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from zenspeed.config import InputError, validate
from zenspeed.models.auto import fetch, load_pretrained
from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.models.hf import LoadReport
from zenspeed.models.layers import use_float8
from zenspeed.models.presets import PRESETS
from zenspeed.models.recompute import recompute_blocks
from zenspeed.models.start import copy_weights
from zenspeed.recipe import Recipe
from zenspeed.run import HEADS, open_run
from zenspeed.text.tokenizer import Tokenizer

_WEIGHTS = ("huggingface", "from_run")

# What fine-tuning takes where the recipe says nothing (Devlin et al. 1810.04805, appendix A.3).
_FINE_TUNING = {"name": "adamw", "lr": 5e-5, "warmup": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.999], "epsilon": 1e-8}
_OWN_LR = 5e-4  # a model trained here is small, and small models want a higher rate (docs/LOG.md)

_KEPT = {"huggingface": ("dropout", "pool"), "from_run": ("dropout", "ngram_dropout", "pool", "pooler")}
"""Keys of the model that a recipe may set beside the weights it begins from: they are of the head, or of training alone."""


def adopt_pretrained(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """A recipe that begins from `model.huggingface` or `model.from_run`, with that model's config in it, and fine-tuning's
    optimizer; with a run's weights comes its tokenizer.

    Raises:
        InputError: the folder cannot be used, or the recipe sets a key that the folder decides.
    """
    model = recipe.model
    key = "huggingface" if model.huggingface is not None else "from_run" if model.from_run is not None else None
    if key is None:
        return recipe
    data = recipe.model_dump(mode="json")
    given = {name: data["model"][name] for name in model.model_fields_set - set(_WEIGHTS)}
    data["model"] = _config_of_run(recipe, data) if key == "from_run" else _config_of_folder(recipe)
    _check_given(given, model.preset, data["model"], key)
    data["model"] |= {name: given[name] for name in _KEPT[key] if name in given}
    if not recipe.optim.model_fields_set:
        data["optim"] |= _FINE_TUNING | ({"lr": _OWN_LR} if key == "from_run" else {})
        say(f"optim: adamw, rate {data['optim']['lr']}, warm-up 10 %: usual for fine-tuning; set optim.lr for another")
    return validate(Recipe, data)


def _check_given(given: dict[str, Any], preset: str, found: dict[str, Any], key: str) -> None:
    """Raises InputError where the recipe wants the model otherwise than the weights are. What a preset filled in is no wish."""
    for name, value in given.items():
        if name in _KEPT[key] or found[name] == value or (name in PRESETS[preset] and PRESETS[preset][name] == value):
            continue
        fix = "cut texts shorter by task.max_tokens" if name == "context" else "take the key away"
        raise InputError(f"model.{name}: comes with model.{key} and is {found[name]!r} there, not {value!r}; {fix}")


def _config_of_folder(recipe: Recipe) -> dict[str, Any]:
    name = str(recipe.model.huggingface)
    folder = fetch(str(Path(name).expanduser()) if name.startswith("~") else name, endpoint=recipe.data.endpoint)
    head = HEADS[recipe.task.kind]
    config = load_pretrained(folder, head).config
    return config.model_dump(mode="json") | {"huggingface": str(folder)}


def _config_of_run(recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    folder = Path(str(recipe.model.from_run)).expanduser()
    if recipe.tokenizer.model_fields_set:
        raise InputError(
            "tokenizer: comes with model.from_run, whose weights know its tokens; take it away: --set tokenizer=null"
        )
    opened = open_run(folder)
    data["tokenizer"] |= {"kind": "folder", "folder": str(folder / "tokenizer"), "vocab_size": None, "special_tokens": []}
    mine = {"from_run": str(folder), "vocab_size": int(opened.checkpoint.state["vocab_size"]), "huggingface": None}
    return opened.recipe.model.model_dump(mode="json") | mine


def task_model(recipe: Recipe, tokenizer: Tokenizer, head: Head, labels: int, seed: int, pretrained: bool) -> nn.Module:
    """The model under `head`. `pretrained`: with the weights that the recipe names, if any; `load_report` then tells of them.

    Raises:
        InputError: the tokenizer has more tokens than the pretrained model, or weights of its body are missing.
    """
    if recipe.model.huggingface is not None and pretrained:
        model = _from_huggingface(recipe, tokenizer, head, labels, seed)
    else:
        model = _from_recipe(recipe, tokenizer, head, labels, seed, pretrained)
    if recipe.train.recompute:
        recompute_blocks(model)
    return model


def _from_recipe(recipe: Recipe, tokenizer: Tokenizer, head: Head, labels: int, seed: int, pretrained: bool) -> nn.Module:
    config = recipe.model
    size = tokenizer.vocab_size if config.vocab_size is None else config.vocab_size
    model = build_model(config, size, head, labels)
    model.init_weights(seed)  # type: ignore[operator]
    if config.from_run is not None and pretrained:
        opened = open_run(Path(config.from_run))
        same = HEADS[opened.recipe.task.kind] == head
        model.load_report = copy_weights(model, opened.model.state_dict(), config.from_run, same_head=same)  # type: ignore[assignment]
    return model


def _from_huggingface(recipe: Recipe, tokenizer: Tokenizer, head: Head, labels: int, seed: int) -> nn.Module:
    config = recipe.model
    assert config.huggingface is not None
    loaded = load_pretrained(config.huggingface, head, labels or None, seed=seed)
    model = loaded.model
    if tokenizer.vocab_size > int(model.vocab_size):  # type: ignore[arg-type]
        raise InputError(
            f"tokenizer: {tokenizer.vocab_size} tokens, but {config.huggingface} has {model.vocab_size}; use its own tokenizer"
        )
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = config.dropout  # type: ignore[assignment]
    if hasattr(model, "head") and hasattr(model.head, "pool"):
        model.head.pool = config.pool
    else:
        model.config = loaded.config.model_copy(update={"pool": config.pool})  # type: ignore[assignment]
    model.load_report = loaded.report  # type: ignore[assignment]
    return model.train()


def train_in_float8(model: nn.Module) -> str:
    """Has `model` train in fp8; which of its layers do, for people.

    Raises: InputError where none can.
    """
    layers = use_float8(model)
    if not layers:
        raise InputError("train.precision fp8: no layer of this model can be in fp8; set train.precision=bf16")
    return f"fp8: the products of {layers} linear layers, all others in bf16"


def load_report(model: nn.Module) -> LoadReport | None:
    """What became of the weights that `task_model` began from; None where it began from none."""
    report = getattr(model, "load_report", None)
    assert report is None or isinstance(report, LoadReport)
    return report

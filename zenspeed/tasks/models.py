"""The model of a task: built from the recipe, or begun from weights of Hugging Face layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from zenspeed.config import InputError, validate
from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.models.hf import load_huggingface
from zenspeed.recipe import Recipe
from zenspeed.text.tokenizer import Tokenizer

# What fine-tuning takes where the recipe says nothing (Devlin et al. 1810.04805, appendix A.3).
_FINE_TUNING = {"name": "adamw", "lr": 5e-5, "warmup": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.999], "epsilon": 1e-8}


def adopt_pretrained(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """A recipe that begins from `model.huggingface`, with that model's config in it, and fine-tuning's optimizer.

    Raises:
        InputError: the folder cannot be used, or the recipe sets a key that the folder decides.
    """
    folder, given = recipe.model.huggingface, recipe.model.model_fields_set
    if folder is None:
        return recipe
    if "context" in given:
        raise InputError("model.context: comes with model.huggingface; cut texts shorter by task.max_tokens")
    loaded = load_huggingface(Path(folder)).config
    kept = {key: getattr(recipe.model, key) for key in ("dropout", "pool") if key in given}
    data = recipe.model_dump(mode="json")
    data["model"] = loaded.model_dump(mode="json") | kept | {"huggingface": folder}
    if not recipe.optim.model_fields_set:
        data["optim"] |= _FINE_TUNING
        say(f"optim: adamw, rate {_FINE_TUNING['lr']}, warm-up 10 %: usual for fine-tuning; set optim.lr for another")
    return validate(Recipe, data)


def task_model(recipe: Recipe, tokenizer: Tokenizer, head: Head, labels: int, seed: int, pretrained: bool) -> nn.Module:
    """The model under `head`. `pretrained`: with the weights of `model.huggingface`, if the recipe names it.

    Raises:
        InputError: the tokenizer has more tokens than the pretrained model.
    """
    config = recipe.model
    if config.huggingface is None or not pretrained:
        size = tokenizer.vocab_size if config.vocab_size is None else config.vocab_size
        model = build_model(config, size, head, labels)
        model.init_weights(seed)  # type: ignore[operator]
        return model
    loaded = load_huggingface(Path(config.huggingface), head, labels or None, seed=seed)
    model = loaded.model
    if tokenizer.vocab_size > int(model.vocab_size):  # type: ignore[arg-type]
        raise InputError(
            f"tokenizer: {tokenizer.vocab_size} tokens, but {config.huggingface} has {model.vocab_size}; use its own tokenizer"
        )
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = config.dropout  # type: ignore[assignment]
    return model.train()

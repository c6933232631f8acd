"""A run, a folder of Hugging Face layout or an index, opened to be served: what it can do, and its card."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from zenspeed.errors import InputError, missing
from zenspeed.models.auto import load_pretrained
from zenspeed.models.hf import read_json
from zenspeed.recipe import Recipe
from zenspeed.retrieve.index import Index, open_index
from zenspeed.run import open_run
from zenspeed.serve.prompts import Prompts
from zenspeed.tasks.base import Place
from zenspeed.tasks.controls import Controls
from zenspeed.tasks.open import ROW_TASKS
from zenspeed.tasks.rows import RowTask
from zenspeed.text.tokenizer import Tokenizer

ENDPOINTS: dict[str, tuple[str, ...]] = {
    "language_model": ("completions", "chat"),
    "classification": ("classify",),
    "seq2seq": ("translate", "summarize", "answer"),
    "span_qa": ("answer",),
    "similarity": ("embeddings", "search"),
    "embedding": ("embeddings", "search"),
    "index": ("search", "answer"),
}
"""What a model of each kind answers."""


_TASKS_OF_FOLDERS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification"},
    "span_qa": {"kind": "span_qa"},
    "seq2seq": {"kind": "seq2seq"},
    "embedding": {"kind": "similarity", "text_pair": "text_pair"},
}


class Opened(NamedTuple):
    """A model with all that is needed to answer."""

    kind: str
    """The run's task, `embedding`, or `index`."""
    model: nn.Module
    tokenizer: Tokenizer | None
    """None of an index that is searched by words."""
    prompts: Prompts | None
    """Of a language model."""
    stop_tokens: frozenset[int]
    task: RowTask | None
    place: Place
    card: dict[str, Any]
    searched: Index | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ENDPOINTS[self.kind]


def open_model(folder: Path) -> Opened:
    """The run, the Hugging Face folder or the index at `folder`.

    Raises:
        InputError: neither, or a model that answers nothing.
    """
    if not folder.is_dir():
        raise missing(folder, "model")
    if (folder / "config.json").exists():
        return _open_folder(folder)
    if (folder / "index.json").exists():
        return _open_index(folder)
    return _open_run(folder)


def _open_index(folder: Path) -> Opened:
    index = open_index(folder)
    card = {
        "kind": "index", "source": "index", "labels": [], "figures": {}, "parameters": 0, "documents": len(index.documents),
        "passages": len(index),
    }  # fmt: skip
    if index.embedder is None:
        return Opened("index", nn.Identity(), None, None, frozenset(), None, Place(nullcontext()), card, index)
    task, model = index.embedder.task, index.embedder.model
    card["parameters"] = sum(p.numel() for p in model.parameters())
    return Opened("index", model, task.tokenizer, None, frozenset(), None, Place(nullcontext()), card, index)


def _open_run(folder: Path) -> Opened:
    run = open_run(folder)
    recipe, kind = run.recipe, run.recipe.task.kind
    if kind == "chat":
        kind = "language_model"  # with a template of its own
    if kind not in ENDPOINTS:
        raise InputError(f"{folder}: a run of {kind} has no answers to give; served are {', '.join(ENDPOINTS)}")
    tokenizer, end = run.tokenizer, run.tokenizer.end_of_text
    prompts = Prompts(tokenizer, [end]) if kind == "language_model" else None
    task = ROW_TASKS[kind].of_run(recipe, tokenizer) if kind in ROW_TASKS else None
    card = _card(run.model, kind) | {
        "source": "run", "step": run.checkpoint.state.get("step"), "labels": list(recipe.task.labels or []),
        "data": recipe.data.source, "pair": kind == "classification" and recipe.task.text_pair is not None,
        "figures": _figures(folder), **(_controls(recipe, tokenizer) if kind == "seq2seq" else {}),
    }  # fmt: skip
    return Opened(kind, run.model, tokenizer, prompts, frozenset([end]), task, _place(recipe), card)


def _open_folder(folder: Path) -> Opened:
    theirs = read_json(folder / "config.json")
    loaded = load_pretrained(folder)
    model, head = loaded.model, getattr(loaded.model, "kind", "language")
    kind = {"language": "language_model", "label": "classification", "span": "span_qa", "embedding": "embedding"}.get(head)
    if kind == "language_model" and loaded.config.architecture == "encoder_decoder":
        kind = "seq2seq"
    if kind is None or (loaded.config.transformers or {}).get("is_encoder_decoder"):
        raise InputError(f"{folder}: a {theirs.get('model_type')} with a {head} head is not served; a run of it may be")
    tokenizer = Tokenizer.load(folder)
    prompts = Prompts(tokenizer, tokenizer.begin()) if kind == "language_model" else None
    labels = [theirs["id2label"][k] for k in sorted(theirs.get("id2label") or {}, key=int)]
    task = None
    if kind in _TASKS_OF_FOLDERS:
        named = _TASKS_OF_FOLDERS[kind] | ({"labels": labels} if kind == "classification" and len(labels) > 1 else {})
        fields = {"data": {"source": str(folder)}, "model": loaded.config.model_dump(), "task": named}
        recipe = Recipe.model_validate(fields)
        task = ROW_TASKS[recipe.task.kind].of_run(recipe, tokenizer)
    stop = {tokenizer.end_of_text, *_ends(folder, theirs)}
    card = _card(model, kind) | {"source": "folder", "labels": labels, "figures": {}}
    return Opened(kind, model, tokenizer, prompts, frozenset(stop), task, Place(nullcontext()), card)


def _controls(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the model is to be told with each text: values that it knows, and the name of the length in words."""
    return {"controls": Controls(recipe.task, tokenizer).choices(), "length": recipe.task.length}


def _place(recipe: Recipe) -> Place:
    return Place(torch.autocast("cpu", torch.bfloat16) if recipe.train.precision == "bf16" else nullcontext())


def _ends(folder: Path, theirs: dict[str, Any]) -> set[int]:
    path = folder / "generation_config.json"
    said = [theirs.get("eos_token_id"), (read_json(path) if path.exists() else {}).get("eos_token_id")]
    return {int(i) for entry in said if entry is not None for i in (entry if isinstance(entry, list) else [entry])}


def _card(model: nn.Module, kind: str) -> dict[str, Any]:
    config: Any = model.config
    sizes = {name: getattr(config, name, None) for name in ("preset", "architecture", "layers", "width", "heads", "context")}
    return {"kind": kind, "parameters": sum(p.numel() for p in model.parameters()), **sizes}


def _figures(folder: Path) -> dict[str, Any]:
    """The last evaluation in metrics.jsonl."""
    path = folder / "metrics.jsonl"
    found: dict[str, Any] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found |= {k: v for k, v in entry.items() if "validation" in k or k.startswith(("test", "figures"))}
    return found

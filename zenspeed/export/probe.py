"""What an exported model is tried on: texts of the run's own validation split, encoded as the trainer encodes them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from zenspeed.data.prepare import prepare
from zenspeed.recipe import Recipe
from zenspeed.run import OpenRun
from zenspeed.tasks.data import open_rows
from zenspeed.tasks.open import ROW_TASKS
from zenspeed.tasks.pairs import PairTask

PROBES, MEASURED = 8, 200
"""Texts that must agree to the tolerance, and texts on which the loss of a quantized model is measured."""


class Probe(NamedTuple):
    tokens: np.ndarray
    """(T,) int64"""
    token_types: np.ndarray | None
    target: int | None
    """Number of the label, of a classification."""
    source: np.ndarray | None = None
    """(S,) int64 that an encoder reads; `tokens` are then what the decoder writes, with the token that begins it."""


def probes_of(opened: OpenRun, most: int = MEASURED) -> list[Probe]:
    """Up to `most` texts of the validation split.

    Raises:
        InputError: the run's data are no longer there.
    """
    recipe = opened.recipe
    if recipe.task.kind == "language_model":
        return _documents(opened, most)
    rows = list(open_rows(recipe, None).validation[:most])
    task = ROW_TASKS[recipe.task.kind].of_run(recipe, opened.tokenizer)
    examples = task.encode(rows, "the validation rows")
    labelled = recipe.task.kind == "classification"
    found = []
    if isinstance(task, PairTask):
        pairs = [task.pair_of(examples, index, None) for index in range(min(most, len(examples.tokens)))]
        return [Probe(target.astype(np.int64), None, None, source.astype(np.int64)) for source, target in pairs]
    for index in range(min(most, len(examples.tokens))):
        types = None if examples.token_types is None else examples.token_types[index].astype(np.int64)
        target = int(examples.targets[index]) if labelled else None
        found.append(Probe(examples.tokens[index].astype(np.int64), types, target))
    return found


def _documents(opened: OpenRun, most: int) -> list[Probe]:
    dataset, end = prepare(opened.recipe).validation, opened.tokenizer.end_of_text
    window = opened.recipe.model.context
    stream = np.asarray(dataset.read(0, min(dataset.num_tokens, most * window * 4)), np.int64)
    starts = np.flatnonzero(stream == end)
    texts = [stream[a:b][:window] for a, b in pairwise(starts) if b - a > 2]
    return [Probe(text, None, None) for text in texts[:most]] or [Probe(stream[:window], None, None)]


def loss_of(probe: Probe, output: np.ndarray) -> tuple[float, int]:
    """(nats, targets) of a probe from its logits: of the next tokens, or of the label."""
    logits = output.astype(np.float64)
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    if probe.target is not None:
        return float(-logs[probe.target]), 1
    targets = probe.tokens[1:]
    return float(-logs[np.arange(len(targets)), targets].sum()), len(targets)


def measurable(recipe: Recipe) -> bool:
    """Its probes have a loss."""
    return recipe.task.kind == "classification" or writes(recipe)


def writes(recipe: Recipe) -> bool:
    """It writes text, token by token."""
    return recipe.task.kind in ("language_model", "chat", "seq2seq", "span_corruption")

"""The runs that the dial chooses among: shapes of the model, each with the batch, length and regularization that suit it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from zenspeed.config import validate
from zenspeed.dial.laws import LAW, batch_tokens, dropout
from zenspeed.dial.rate import Rate
from zenspeed.pace import WRAP_UP_SECONDS
from zenspeed.plan.work import Shape
from zenspeed.recipe import Recipe

LEAST_UPDATES = 20
"""Fewer leave a model at its start."""
SHAPES = ((3, 64), (4, 96), (4, 128), (4, 192), (5, 256), (6, 320), (6, 384), (8, 512), (10, 640), (12, 768), (16, 1024))
"""(layers, width): deeper where wider, as is usual for models of this kind."""
PROCESS_BYTES = 650e6
"""Of Python and torch, before there is a model."""


class Text(NamedTuple):
    """What is trained on."""

    tokens: int
    bytes: int
    held_out_tokens: int
    vocab_size: int
    entropy: float
    """Bits of a byte when the three before it are known."""

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


class Candidate(NamedTuple):
    """One run that would fit into the time."""

    recipe: Recipe
    shape: Shape
    updates: float
    tokens: float
    epochs: float
    bits_per_byte: float
    """Predicted, of held-out text."""
    memory: float
    """Bytes, predicted."""


def set_free(recipe: Recipe, values: dict[str, Any], given: Set[str]) -> Recipe:
    """The recipe with `section.key` values where the user gave none."""
    data = recipe.model_dump(mode="json")
    for name, value in values.items():
        section, _, key = name.partition(".")
        if name not in given:
            data[section][key] = value
    return validate(Recipe, data)


def heads_of(width: int) -> int:
    """Heads of 64 or a little more, of an even size, that divide the width."""
    fits = [n for n in range(1, width // 64 + 1) if width % n == 0 and width // n % 2 == 0]
    return max(fits, default=1)


def shaped(recipe: Recipe, layers: int, width: int, context: int, batch: int, ranks: int, given: Set[str]) -> Recipe:
    """The recipe for a model of this shape and updates of about `batch` tokens, a multiple of what ranks and threads share."""
    width = recipe.model.width if "model.width" in given else width
    context = recipe.model.context if "model.context" in given else context
    sequences = max(1, batch // context)
    sequences = max(1, round(sequences / ranks)) * ranks
    values = {
        "model.layers": layers, "model.width": width, "model.heads": heads_of(width), "model.context": context,
        "model.ngrams": [2, 3], "train.batch_size": sequences,
    }  # fmt: skip
    return set_free(recipe, values, given)


def candidates(
    recipe: Recipe, given: Set[str], text: Text, rate: Rate, seconds: float, ranks: int, lanes: int, held: float = 0.0
) -> Iterator[Candidate]:
    """What `seconds` of training, last evaluation and end would give, smallest model first; `held`: bytes the process has now.

    Where an update of a shape takes too long for LEAST_UPDATES of them, the shape is left out.
    """
    seen = set()
    for layers, width in SHAPES:
        tokens = 1e6
        for _ in range(3):  # the batch depends on the tokens, and they on the batch
            context = context_of(tokens, text)
            one = shaped(recipe, layers, width, context, batch_tokens(tokens), ranks, given)
            shape = Shape(one.model, text.vocab_size)
            batch = one.train.batch_size * one.model.context
            left = seconds - WRAP_UP_SECONDS - 1.1 * rate.evaluation_seconds(shape, text.held_out_tokens)
            updates = left / rate.update_seconds(shape, batch)
            tokens = max(1.0, updates) * batch
        key = one.model_dump_json()
        if updates < LEAST_UPDATES or key in seen:
            continue
        seen.add(key)
        epochs = tokens / text.tokens
        left_out = dropout(epochs)
        values = {"model.dropout": left_out, "model.ngram_dropout": min(0.5, round(1.5 * left_out, 2))}
        bits = text.entropy * LAW.ratio(shape.layers * shape.block_weights, tokens * text.bytes_per_token, text.bytes)
        final = set_free(one, values, given)
        yield Candidate(final, shape, updates, tokens, epochs, bits, max(held, memory_of(shape, final, lanes, batch)))


def context_of(tokens: float, text: Text) -> int:
    """Short at first, when nearby words teach the most; never more than an eighth of the text."""
    wanted = 128 if tokens < 1.5e6 else 256 if tokens < 1e8 else 512
    while wanted > 16 and wanted > text.tokens // 8:
        wanted //= 2
    return wanted


def memory_of(shape: Shape, recipe: Recipe, lanes: int, batch: float) -> float:
    """Bytes of a process: weights, gradients of each lane, two states, a checkpoint on its way, and what backward needs."""
    states = shape.weights * (4 + 4 * lanes + 8 + 8)
    layers, width = shape.layers, shape.width
    kept = min(batch, 8192 * lanes) * (layers * (34 * width + 2 * shape.heads * shape.context) + 24 * width)
    return PROCESS_BYTES + states + kept

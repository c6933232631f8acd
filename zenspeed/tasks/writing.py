"""What tasks that write text have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zenspeed.decode import BeamOptions
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place
from zenspeed.text.tokenizer import Tokenizer


def beam_options(model: nn.Module, recipe: Recipe, tokenizer: Tokenizer, end: int, most: int) -> BeamOptions:
    """Those of `recipe.decode` for texts of up to `most` tokens. Special tokens but `end` are no text, and are not written."""
    decode, size = recipe.decode, int(model.vocab_size)  # type: ignore[arg-type]
    allowed = torch.arange(size) < tokenizer.vocab_size
    allowed[list(tokenizer.special_tokens().values())] = False
    allowed[end] = True
    most = min(decode.max_tokens or most, most)
    return BeamOptions(
        max_tokens=most, end=end, beams=decode.beams, length_penalty=decode.length_penalty,
        min_tokens=min(decode.min_tokens, most - 1), allowed=allowed.to(next(model.parameters()).device),
    )  # fmt: skip


@contextmanager
def writing(model: nn.Module, place: Place) -> Iterator[torch.device]:
    """The model in evaluation mode, without gradients, in the type of `place`; gives its device."""
    was_training = model.training
    model.eval()
    try:
        with place.autocast, torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)

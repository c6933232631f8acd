"""Masked language modelling (Devlin et al. 2018, arXiv 1810.04805): predict tokens that were hidden, from both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.data.batch import IGNORE, Batch
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout
from zenspeed.evaluate.interval import Figure
from zenspeed.tasks.base import Place
from zenspeed.tasks.encoding import encode_texts, special_tokens
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, column_of, loss_figures, losses_by_document

EVALUATION_SEED = 0


class MaskedTask(RowTask):
    """Documents in windows. Of the tokens to be predicted 80 % are hidden, 10 % replaced by others, 10 % left as they are."""

    def prepare(self) -> None:
        mask = self.tokenizer.mask
        if mask is None:
            raise InputError("tokenizer: has no mask token, which masked_lm needs; set tokenizer.kind=wordpiece")
        self._mask = mask
        self._special = set(special_tokens(self.tokenizer))

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        texts = column_of(rows, self.recipe.task.text, "task.text", split)
        encoded = encode_texts(self.tokenizer, texts, self.longest, stride=self.recipe.task.stride or 0)
        return Examples(Ragged(encoded.tokens), encoded.owner, encoded.owner, rows)

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "masked", 0, seed, pretrained)

    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch:
        """What is hidden depends on the number of the sample alone; in evaluation, on that of the example."""
        tokens: Tensor = inputs["tokens"]
        targets = torch.full_like(tokens, IGNORE)
        for place, (row, column, index) in enumerate(zip(layout.rows, layout.columns, indices, strict=True)):
            key = [self.recipe.run.seed, seed + place] if seed is not None else [EVALUATION_SEED, int(index)]
            length = int(examples.tokens.lengths[index])
            span = slice(int(column), int(column) + length)
            shown, wanted = self._hide(examples.tokens[index], np.random.default_rng(key))
            tokens[row, span], targets[row, span] = torch.from_numpy(shown), torch.from_numpy(wanted)
        return Batch(inputs | {"tokens": tokens}, targets)

    def _hide(self, text: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees and what it is to say, (n,) int64 each; at least one token of every text is chosen."""
        free = np.flatnonzero(~np.isin(text, list(self._special)))
        shown, wanted = text.astype(np.int64), np.full(len(text), IGNORE, np.int64)
        if len(free):
            chosen = rng.permutation(free)[: max(1, round(self.recipe.task.mask * len(free)))]
            wanted[chosen] = shown[chosen]
            kind = rng.random(len(chosen))
            shown[chosen[kind < 0.8]] = self._mask
            other = chosen[kind >= 0.9]
            shown[other] = rng.integers(self.tokenizer.vocab_size, size=len(other))
        return shown, wanted

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss of a hidden token; intervals over documents."""
        by_window = self.outputs(model, examples, place, (2,), losses_by_document)
        sums = np.zeros((len(examples.rows), 2))
        np.add.at(sums, examples.owner, by_window)
        return loss_figures(sums, "a hidden token")

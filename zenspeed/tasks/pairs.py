"""What tasks of an encoder-decoder have in common: batches of sources with their targets, and the losses.

    source   text [end]                     one row of `source`, one of `tokens`: a target in the row of its source,
    target   [begin] text                   both with the same number in their `documents`
    loss             text [end]

[end] is what ends a text (encoding.py); [begin] what begins one, of a T5 token 0, as its folders say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from zenspeed.data.batch import IGNORE, Batch
from zenspeed.data.packing import document_numbers, fill, pack_pairs, pad
from zenspeed.evaluate.interval import Figure
from zenspeed.tasks.base import Place
from zenspeed.tasks.encoding import special_tokens
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, loss_figures, losses_by_document


class PairTask(RowTask):
    """A task whose example is a source and a target; `pair_of` says which, for a task where they are drawn anew each time."""

    def prepare(self) -> None:
        begin, self.end = special_tokens(self.tokenizer)
        self.begin = 0 if self.recipe.model.preset == "t5" else begin

    def pair_of(self, examples: Examples, index: int, sample: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of source and target, the target with [begin] and [end]. `sample`: number in training; None: evaluation."""
        assert examples.written is not None
        return examples.tokens[index], examples.written[index]

    def collate(self, examples: Examples, indices: np.ndarray, *, packed: bool, seed: int | None = None) -> Batch:
        pairs = [self.pair_of(examples, int(i), None if seed is None else seed + n) for n, i in enumerate(indices)]
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        sizes = np.array([len(s) for s in sources]), np.array([len(t) - 1 for t in targets])
        if packed:
            source, target = pack_pairs(*sizes, max(self.longest, int(np.max(sizes))))
        else:
            source, target = pad(sizes[0]), pad(sizes[1])
        inputs = {
            "tokens": fill(target, [t[:-1] for t in targets], self.padding),
            "documents": document_numbers(target, sizes[1]),
            "source": fill(source, sources, self.padding),
            "source_documents": document_numbers(source, sizes[0]),
        }
        return Batch(inputs, fill(target, [t[1:] for t in targets], IGNORE))

    def with_targets(self, *arguments: Any) -> Batch:
        raise AssertionError("`collate` makes whole batches of pairs")

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "language", 0, seed, pretrained)

    def num_tokens(self, batch: Batch) -> int:
        return sum(int((batch.inputs[name] >= 0).sum()) for name in ("documents", "source_documents"))

    def flops_per_token(self, model: nn.Module) -> float:
        some = [self.pair_of(self.train, i, i) for i in range(min(64, len(self.train.tokens)))]
        source, target = (max(1, round(float(np.mean([len(pair[side]) for pair in some])))) for side in (0, 1))
        return float(model.flops_per_token(target, source)) * target / (source + target)  # type: ignore[operator]

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss of a token of the target; intervals over rows."""
        sums = np.zeros((len(examples.rows), 2))
        np.add.at(sums, examples.owner, self.outputs(model, examples, place, (2,), losses_by_document))
        return loss_figures(sums, "a token of the target")

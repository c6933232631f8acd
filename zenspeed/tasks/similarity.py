"""Vectors of texts, near each other where the texts belong together: similarity, search, items that go with a text.

Both texts of a pair go through the same encoder. Without scores a text is to find its own among those of its micro-batch (the
others are its negatives, so that train.micro_batch_size decides how hard that is); with scores, pairs are to be in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.data.batch import Batch
from zenspeed.data.duplicates import text_hash
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout, document_numbers, fill, pack, pad
from zenspeed.evaluate.correlation import number_figures
from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval
from zenspeed.evaluate.ranking import ranking_figures
from zenspeed.ops.contrastive import in_batch_loss, order_loss
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, on_device
from zenspeed.tasks.data import open_rows
from zenspeed.tasks.encoding import encode_texts, frame_texts
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, column_of

_CHUNK = 1024  # queries compared with all candidates at once


class SimilarityTask(RowTask):
    """An example is a pair, its texts end to end; its targets (tokens of the first, numbers of both texts, score).

    Examples of single texts, to be embedded only, have targets of one dimension.
    """

    micro_batch_counts = True
    apart = False

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        data = open_rows(recipe, progress)
        self.recipe, self.tokenizer, self.report = recipe, data.tokenizer, data.report
        self._set_up(data)
        if (recipe.train.micro_batch_size or 2) < 2 and progress:
            progress("train.micro_batch_size: 1 leaves a text nothing to be told from; give 16 or more")

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "embedding", 0, seed, pretrained)

    # Rows to examples -------------------------------------------------------------------------------------------------

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        first, second = self._pairs(rows, split)
        sides = [encode_texts(self.tokenizer, texts, self.longest, stride=None) for texts in (first, second)]
        self.report.setdefault("cut", {})[split] = sides[0].cut + sides[1].cut
        same = np.array([[_number(text) for text in pair] for pair in zip(first, second, strict=True)])
        scores = np.zeros(len(rows)) if self.recipe.task.score is None else self._scores(rows, split)
        tokens = [np.concatenate(pair) for pair in zip(sides[0].tokens, sides[1].tokens, strict=True)]
        targets = np.column_stack([[len(t) for t in sides[0].tokens], same, scores])
        return Examples(Ragged(tokens), targets.astype(np.float64), np.arange(len(rows)), rows)

    def _pairs(self, rows: Sequence[dict[str, Any]], split: str) -> tuple[list[str], list[str]]:
        task = self.recipe.task
        assert task.text_pair is not None, "checked by the recipe"
        return column_of(rows, task.text, "task.text", split), column_of(rows, task.text_pair, "task.text_pair", split)

    def _scores(self, rows: Sequence[dict[str, Any]], split: str) -> np.ndarray:
        column = self.recipe.task.score
        assert column is not None
        found = np.zeros(len(rows))
        for i, text in enumerate(column_of(rows, column, "task.score", split)):
            try:
                found[i] = float(text)
            except ValueError:
                found[i] = np.nan
            if not np.isfinite(found[i]):
                raise InputError(f"task.score: row {i + 1} of {split} has {text!r} in column {column!r}; give a number")
        return found

    # Batches and losses -----------------------------------------------------------------------------------------------

    def collate(self, examples: Examples, indices: np.ndarray, *, packed: bool, seed: int | None = None) -> Batch:
        """The batch of N pairs as 2N texts, all first ones before all second ones; or of N single texts."""
        if examples.targets.ndim == 1:
            return super().collate(examples, indices, packed=packed, seed=seed)
        cuts = examples.targets[indices, 0].astype(np.int64)
        pairs = [examples.tokens[i] for i in indices]
        texts = [p[:c] for p, c in zip(pairs, cuts, strict=True)] + [p[c:] for p, c in zip(pairs, cuts, strict=True)]
        lengths = np.array([len(text) for text in texts])
        layout = pack(lengths, self.longest) if packed else pad(lengths)
        inputs: dict[str, Any] = {
            "tokens": fill(layout, texts, self.padding),
            "documents": document_numbers(layout, lengths),
        }
        batch = self.with_targets(inputs, examples, indices, layout, seed)
        inputs["num_documents"] = len(texts)
        return batch

    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch:
        inputs["num_documents"] = len(indices)
        return Batch(inputs, torch.from_numpy(examples.targets[indices]))

    def num_targets(self, batch: Batch) -> int:
        return len(batch.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = on_device(batch, next(module.parameters()).device)
        vectors = module(**inputs)
        with torch.autocast(vectors.device.type, enabled=False):  # cosines in fp32: they are divided by a small number
            return self._loss(vectors[: len(targets)].float(), vectors[len(targets) :].float(), targets).sum()

    def _loss(self, first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
        """(N,) of vectors (N, C) and targets (N, 4)."""
        task = self.recipe.task
        if task.score is not None:
            return order_loss((first * second).sum(1), targets[:, 3], task.temperature).expand(len(targets))
        equal = (targets[:, 1, None] == targets[None, :, 1]) | (targets[:, 2, None] == targets[None, :, 2])
        return in_batch_loss(first, second, task.temperature, equal)

    # Vectors and figures ----------------------------------------------------------------------------------------------

    def embed(
        self, model: nn.Module, texts: Sequence[str], place: Place, tokens: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """(texts, width) float32, each of length 1; a text longer than task.max_tokens is cut. The same on all ranks.

        Args:
            tokens: of each text, where they are known already.
        """

        def output(module: nn.Module, batch: Batch) -> Tensor:
            inputs, _ = on_device(batch, next(module.parameters()).device)
            return module(**inputs).float()

        numbers: dict[str, int] = {}
        which = [numbers.setdefault(text, len(numbers)) for text in texts]
        known = None if tokens is None else dict(zip(texts, tokens, strict=True))
        unique = self.tokenizer.encode_batch(list(numbers)) if known is None else [known[text] for text in numbers]
        encoded = frame_texts(self.tokenizer, unique, self.longest, stride=None)
        examples = Examples(Ragged(encoded.tokens), np.zeros(len(numbers)), encoded.owner, [])
        if not numbers:
            return np.zeros((0, self.recipe.model.width), np.float32)
        return self.outputs(model, examples, place, (self.recipe.model.width,), output)[which].astype(np.float32)

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss; and of pairs with scores the correlation, of others how well each first text finds its second among all."""
        first, second = (self.embed(model, texts, place) for texts in self._pairs(examples.rows, "the rows"))
        size = self.recipe.train.micro_batch_size or len(first)
        groups = [
            self._loss(*(torch.tensor(x[i : i + size]) for x in (first, second, examples.targets))).double().numpy()
            for i in range(0, len(first), size)
        ]
        if self.recipe.task.score is None:
            definition = f"mean loss of a pair among {size} in the order of the rows, in nats"
            loss = ratio_interval(np.concatenate(groups), np.ones(len(first)), definition)
        else:  # one loss for all pairs of a group
            sums, counts = np.array([group.sum() for group in groups]), np.array([float(len(group)) for group in groups])
            loss = ratio_interval(sums, counts, f"mean loss of the order of {size} pairs, in the order of the rows, in nats")
        found = self.score(self._predictions(examples.rows, first, second))
        return {"loss": loss} | {name: figure for name, figure in found.items() if isinstance(figure, Figure)}

    def predict(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
        """Of a pair `text`, `text_pair`, `prediction` (cosine), and `label` or `rank` among `candidates`, the second texts
        of all rows; of rows without a second text `text` and `embedding`."""
        task = self.recipe.task
        if not any(task.text_pair in row for row in rows):
            texts = column_of(rows, task.text, "task.text", "the rows")
            vectors = self.embed(model, texts, place)
            return [{"text": text, "embedding": v.tolist()} for text, v in zip(texts, vectors, strict=True)]
        first, second = (self.embed(model, texts, place) for texts in self._pairs(rows, "the rows"))
        return self._predictions(rows, first, second)

    def _predictions(self, rows: Sequence[dict[str, Any]], first: np.ndarray, second: np.ndarray) -> list[dict[str, Any]]:
        texts, pairs = self._pairs(rows, "the rows")
        cosines = (first * second).sum(1)
        if self.recipe.task.score is None:
            ranks, candidates = pair_ranks(texts, pairs, first, second)
            more: list[dict[str, Any]] = [{"rank": int(rank), "candidates": candidates} for rank in ranks]
        elif all(row.get(self.recipe.task.score) is not None for row in rows):
            more = [{"label": float(score)} for score in self._scores(rows, "the rows")]
        else:
            more = [{} for _ in rows]
        return [
            {"text": a, "text_pair": b, "prediction": round(float(cosine), 6)} | extra
            for a, b, cosine, extra in zip(texts, pairs, cosines, more, strict=True)
        ]

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        if self.recipe.task.score is None:
            return ranking_figures([np.array([float(p["rank"])]) for p in predictions])
        truth, said = ([float(p[name]) for p in predictions] for name in ("label", "prediction"))
        found = number_figures(np.array(truth), np.array(said))
        return {name: found[name] for name in ("spearman", "pearson")}  # a cosine is of another scale than the scores


def pair_ranks(texts: Sequence[str], pairs: Sequence[str], first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
    """(n,) rank from 1 of each row's second text among all different ones, those of the same first text left out; and their
    number. A candidate as near as the row's own counts as before it."""
    numbers: dict[str, int] = {}
    owns = np.array([numbers.setdefault(text, len(numbers)) for text in pairs])
    candidates = np.zeros((len(numbers), second.shape[1]), np.float32)
    candidates[owns] = second
    belongs: dict[str, list[int]] = {}
    for text, own in zip(texts, owns, strict=True):
        belongs.setdefault(text, []).append(int(own))
    ranks = np.zeros(len(owns), np.int64)
    for start in range(0, len(owns), _CHUNK):
        scores = first[start : start + _CHUNK] @ candidates.T
        for i, row in enumerate(scores, start):
            own = row[owns[i]]
            row[belongs[texts[i]]] = -np.inf
            ranks[i] = 1 + int((row >= own).sum())
    return ranks, len(numbers)


def _number(text: str) -> int:
    """The same for equal texts wherever they are read; exact as a float64."""
    return text_hash(text) & (2**52 - 1)

"""One label, or one number, for a text: sentiment, topics, entailment of a pair, ratings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.data.batch import Batch
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout
from zenspeed.evaluate.classify import confusion_of, label_figures
from zenspeed.evaluate.interval import Figure, Undefined, ratio_interval
from zenspeed.evaluate.measures import figures_of
from zenspeed.evaluate.predictions import checked
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, on_device
from zenspeed.tasks.data import open_rows
from zenspeed.tasks.encoding import frame_pairs, frame_texts
from zenspeed.tasks.labels import check_known
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, column_of


class ClassificationTask(RowTask):
    """Targets are label numbers; a text longer than the context is judged by the mean of its windows' probabilities."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        data = open_rows(recipe, progress)
        self.tokenizer, self.report = data.tokenizer, data.report
        self.recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": data.labels})})
        self.prepare()
        self._set_up(data)
        counts = np.bincount(self.train.targets, minlength=len(self.labels))
        self.report["labels"] = dict(zip(self.labels, map(int, counts), strict=True))

    def prepare(self) -> None:
        self.labels = list(self.recipe.task.labels or [])

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        """Rows with a label -> examples."""
        task = self.recipe.task
        texts = column_of(rows, task.label, "task.label", split)
        check_known(texts, self.labels, task.label, split)
        number = {label: i for i, label in enumerate(self.labels)}
        return self._examples(rows, split, np.array([number[t] for t in texts], np.int64))

    def _examples(
        self, rows: list[dict[str, Any]], split: str, targets: np.ndarray, tokens: Sequence[Sequence[np.ndarray]] | None = None
    ) -> Examples:
        task, longest = self.recipe.task, self.longest
        columns = self._columns(rows, split) if tokens is None else list(zip(*tokens, strict=True))
        if task.text_pair:
            encoded = frame_pairs(self.tokenizer, columns[0], columns[1], longest)
        else:
            encoded = frame_texts(self.tokenizer, columns[0], longest, task.stride)
        self.report.setdefault("cut", {})[split] = encoded.cut
        types = Ragged(encoded.types) if task.text_pair else None
        return Examples(Ragged(encoded.tokens), targets[encoded.owner], encoded.owner, rows, types)

    def _columns(self, rows: list[dict[str, Any]], split: str) -> list[Sequence[np.ndarray]]:
        """Of the text, and of the second text if there is one, the tokens of each row."""
        task = self.recipe.task
        texts = [column_of(rows, task.text, "task.text", split)]
        texts += [column_of(rows, task.text_pair, "task.text_pair", split)] if task.text_pair else []
        return [self.tokenizer.encode_batch(column) for column in texts]

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "label", len(self.labels), seed, pretrained)

    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch:
        inputs["num_documents"] = len(indices)
        return Batch(inputs, torch.from_numpy(examples.targets[indices]))

    # Evaluation -------------------------------------------------------------------------------------------------------

    def probabilities(self, model: nn.Module, examples: Examples, place: Place) -> np.ndarray:
        """(rows, labels), each row's windows averaged."""

        def output(module: nn.Module, batch: Batch) -> Tensor:
            inputs, _ = on_device(batch, next(module.parameters()).device)
            return module(**inputs).float().softmax(-1)

        by_window = self.outputs(model, examples, place, (len(self.labels),), output)
        return _mean_by(examples.owner, by_window, len(examples.rows))

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss, and the figures of labels that these rows define."""
        probabilities = self.probabilities(model, examples, place)
        truth = np.zeros(len(examples.rows), np.int64)
        truth[examples.owner] = examples.targets
        losses = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12))
        loss = ratio_interval(losses, np.ones(len(losses)), "mean negative log likelihood of the label, in nats")
        order = np.array(sorted(range(len(self.labels)), key=self.labels.__getitem__))
        names, place_of = [self.labels[i] for i in order], np.argsort(order)
        found = label_figures(confusion_of(names, place_of[truth], place_of[probabilities.argmax(1)]))
        return {"loss": loss} | {name: figure for name, figure in found.items() if isinstance(figure, Figure)}

    def predict(
        self,
        model: nn.Module,
        rows: list[dict[str, Any]],
        place: Place,
        tokens: Sequence[Sequence[np.ndarray]] | None = None,
    ) -> list[dict[str, Any]]:
        """`text`, `prediction`, `scores` (a probability a label), and `label` where the row has one.

        Args:
            tokens: of each row's text, and of its second text if the task has one, where they are known already.
        """
        examples = self._examples(rows, "the rows", np.zeros(len(rows), np.int64), tokens)
        probabilities = self.probabilities(model, examples, place)
        task = self.recipe.task
        return [
            {"text": str(row[task.text])}
            | ({"label": str(row[task.label])} if row.get(task.label) is not None else {})
            | {
                "prediction": self.labels[int(of_row.argmax())],
                "scores": {label: float(f"{p:.9g}") for label, p in zip(self.labels, of_row, strict=True)},
            }
            for row, of_row in zip(rows, probabilities, strict=True)
        ]

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        return figures_of(checked(predictions))


def _mean_by(owner: np.ndarray, values: np.ndarray, rows: int) -> np.ndarray:
    sums, counts = np.zeros((rows, values.shape[1])), np.zeros(rows)
    np.add.at(sums, owner, values)
    np.add.at(counts, owner, 1)
    return sums / counts[:, None]

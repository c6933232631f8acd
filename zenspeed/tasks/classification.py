"""One label, or one number, for a text: sentiment, topics, entailment of a pair, ratings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zenspeed.config import write_atomically
from zenspeed.data.batch import Batch
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout
from zenspeed.evaluate.classify import confusion, label_figures
from zenspeed.evaluate.interval import Figure, ratio_interval
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, on_device
from zenspeed.tasks.data import open_rows
from zenspeed.tasks.encoding import encode_pairs, encode_texts
from zenspeed.tasks.labels import check_known
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, column_of
from zenspeed.text.tokenizer import Tokenizer


class ClassificationTask(RowTask):
    """Targets are label numbers; a text longer than the context is judged by the mean of its windows' probabilities."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        self.recipe = recipe
        data = open_rows(recipe, progress)
        self.tokenizer, self.report = data.tokenizer, data.report
        self.labels = data.labels
        self.recipe = recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": self.labels})})
        encode = [self.encode(rows, name) for rows, name in data.splits()]
        self._set_up(recipe, encode[0], encode[1], encode[2] if len(encode) > 2 else None)
        counts = np.bincount(self.train.targets, minlength=len(self.labels))
        self.report["labels"] = dict(zip(self.labels, map(int, counts), strict=True))

    @classmethod
    def of_run(cls, recipe: Recipe, tokenizer: Tokenizer) -> ClassificationTask:
        """The task of a finished run, to be used on other rows: it has no data of its own."""
        task = cls.__new__(cls)
        task.recipe, task.tokenizer, task.report = recipe, tokenizer, {}
        task.labels = list(recipe.task.labels or [])
        return task

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        """Rows with a label -> examples."""
        task = self.recipe.task
        texts = column_of(rows, task.label, "task.label", split)
        check_known(texts, self.labels, task.label, split)
        number = {label: i for i, label in enumerate(self.labels)}
        return self._examples(rows, split, np.array([number[t] for t in texts], np.int64))

    def _examples(self, rows: list[dict[str, Any]], split: str, targets: np.ndarray) -> Examples:
        task, longest = self.recipe.task, self.longest
        first = column_of(rows, task.text, "task.text", split)
        if task.text_pair:
            second = column_of(rows, task.text_pair, "task.text_pair", split)
            encoded = encode_pairs(self.tokenizer, first, second, longest)
        else:
            encoded = encode_texts(self.tokenizer, first, longest, task.stride)
        self.report.setdefault("cut", {})[split] = encoded.cut
        types = Ragged(encoded.types) if task.text_pair else None
        return Examples(Ragged(encoded.tokens), targets[encoded.owner], encoded.owner, rows, types)

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

    def evaluate(self, model: nn.Module, place: Place) -> dict[str, Figure]:
        return self.figures(self.validation, self.probabilities(model, self.validation, place))

    def figures(self, examples: Examples, probabilities: np.ndarray) -> dict[str, Figure]:
        """Loss, and the figures of labels that these rows define."""
        truth = self._truth(examples)
        losses = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12))
        loss = ratio_interval(losses, np.ones(len(losses)), "mean negative log likelihood of the label, in nats")
        names = np.array(self.labels)
        found = label_figures(confusion(names[truth].tolist(), names[probabilities.argmax(1)].tolist()))
        return {"loss": loss} | {name: figure for name, figure in found.items() if isinstance(figure, Figure)}

    def _truth(self, examples: Examples) -> np.ndarray:
        truth = np.zeros(len(examples.rows), np.int64)
        truth[examples.owner] = examples.targets
        return truth

    def predictions(self, examples: Examples, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """One row a text, as `zenspeed evaluate --predictions` reads them."""
        truth, column = self._truth(examples), self.recipe.task.text
        return [
            {
                "text": str(row[column]),
                "label": self.labels[truth[i]],
                "prediction": self.labels[int(probabilities[i].argmax())],
                "scores": {label: round(float(p), 6) for label, p in zip(self.labels, probabilities[i], strict=True)},
            }
            for i, row in enumerate(examples.rows)
        ]

    def finish(self, model: nn.Module, place: Place, folder: Path, say: Callable[[str], None]) -> dict[str, Figure]:
        """Predictions on the test split, or on the validation split where there is no test."""
        examples = self.test or self.validation
        probabilities = self.probabilities(model, examples, place)
        if place.rank == 0:
            lines = [json.dumps(p, ensure_ascii=False) for p in self.predictions(examples, probabilities)]
            write_atomically(folder / "predictions.jsonl", "\n".join(lines) + "\n")
        if self.test is None:
            return {}
        figures = self.figures(self.test, probabilities)
        say("test: " + self.summary(figures))
        return {f"test_{name}": figure for name, figure in figures.items()}


def _mean_by(owner: np.ndarray, values: np.ndarray, rows: int) -> np.ndarray:
    sums, counts = np.zeros((rows, values.shape[1])), np.zeros(rows)
    np.add.at(sums, owner, values)
    np.add.at(counts, owner, 1)
    return sums / counts[:, None]

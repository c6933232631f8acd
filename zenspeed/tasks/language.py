"""Language modelling: predict the next token of a stream of documents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from zenspeed.config import write_atomically
from zenspeed.data.batch import Batch
from zenspeed.data.loader import Loader
from zenspeed.data.prepare import prepare
from zenspeed.data.report import report_of
from zenspeed.data.report_page import as_json
from zenspeed.data.shards import TokenDataset
from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.language import document_losses, language_figures
from zenspeed.generate import generate_text
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place, Task
from zenspeed.tasks.models import task_model

if TYPE_CHECKING:
    from zenspeed.models.transformer import Transformer


_REPORTED_TOKENS = 2_000_000
"""Of documents that the data report looks at."""


class LanguageTask(Task):
    """Windows of `model.context` tokens from shards on disk."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        self.recipe = recipe
        self.prepared = prepare(recipe, progress)
        self.tokenizer = self.prepared.tokenizer
        self.fingerprint, self.report = self.prepared.train.fingerprint, self.prepared.report
        across, end = recipe.data.attend_across_documents, self.tokenizer.end_of_text
        self._loader = Loader(self.prepared.train, recipe.model.context, recipe.run.seed, across, end)
        self.num_samples = self._loader.num_samples
        self.tokens_per_sample = recipe.model.context
        self.bytes_per_token = float(self.prepared.train.document_bytes.sum()) / max(1, self.prepared.train.num_tokens)
        new = 1 - recipe.evaluate.overlap / recipe.model.context  # share of a window
        self.evaluation_tokens = int(self.prepared.validation.num_tokens / new)

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "language", 0, seed, pretrained)

    def micro_batches(self, first: int, sizes: Sequence[int]) -> list[Batch]:
        starts = itertools.accumulate(sizes, initial=first)
        return [self._loader.batch(start, size) for start, size in zip(starts, sizes, strict=False)]

    def evaluate(self, model: nn.Module, place: Place) -> dict[str, Figure]:
        recipe, dataset = self.recipe, self.prepared.validation
        losses, tokens = document_losses(
            model,
            dataset,
            recipe.model.context,
            recipe.evaluate.batch_size or recipe.train.micro_batch_size or 1,
            place.autocast,
            place.rank,
            place.ranks,
            recipe.data.attend_across_documents,
            recipe.evaluate.overlap,
        )
        return language_figures(losses, tokens, dataset.document_bytes)

    def summary(self, figures: dict[str, Figure]) -> str:
        return (
            f"validation loss {figures['loss']} · perplexity {figures['perplexity'].value:.2f} · "
            f"{figures['bits_per_byte'].value:.4f} bits per byte · {figures['loss'].n} documents"
        )

    def data_report(self) -> dict[str, Any]:
        splits = {"train": self.prepared.train, "validation": self.prepared.validation}
        return as_json(report_of({name: self._some(data) for name, data in splits.items()}, "text", None, self.tokenizer))

    def _some(self, dataset: TokenDataset) -> tuple[list[dict[str, str]], int]:
        """Documents spread over the whole, as many as _REPORTED_TOKENS allow; and the number of all."""
        starts, rows, left = dataset.document_starts, [], _REPORTED_TOKENS
        stops = np.append(starts[1:], dataset.num_tokens - 1)
        longest = max(1, dataset.num_tokens // max(1, len(starts)))
        for i in range(0, len(starts), max(1, -(-len(starts) // max(1, _REPORTED_TOKENS // longest)))):
            tokens = dataset.read(int(starts[i]) + 1, min(int(stops[i]), int(starts[i]) + 1 + max(0, left)))
            left -= len(tokens)
            rows.append({"text": self.tokenizer.decode(tokens.tolist())})
            if left <= 0:
                break
        return rows, len(starts)

    def _tokens_after(self, prompt: str) -> int:
        """Tokens of a sample: as the recipe says, but learned positions have an end."""
        wanted, model = self.recipe.sample.max_tokens, self.recipe.model
        if model.position != "learned":
            return wanted
        return max(1, min(wanted, model.context - len(self.tokenizer.encode(prompt))))

    def finish(self, model: nn.Module, place: Place, folder: Path, say: Callable[[str], None]) -> dict[str, Figure]:
        if place.rank != 0:
            return {}
        if not hasattr(model, "new_cache"):
            say("no samples: a model that is run by transformers does not write here; export it, and write with transformers")
            return {}
        sample = self.recipe.sample
        lines = [f"# Samples of {folder.name}", ""]
        for seed, prompt in enumerate(sample.prompts):
            with place.autocast:
                pieces = generate_text(
                    cast("Transformer", model),
                    self.tokenizer,
                    prompt,
                    max_tokens=self._tokens_after(prompt),
                    temperature=sample.temperature,
                    top_k=sample.top_k,
                    seed=seed,
                )
                text = prompt + "".join(pieces)
            lines += [f"Prompt: `{prompt}`" if prompt else "No prompt.", "", *(f"> {line}" for line in text.splitlines()), ""]
            say(f"\nsample{f' for {prompt!r}' if prompt else ''}:\n{text}")
        write_atomically(folder / "samples.md", "\n".join(lines))
        return {}

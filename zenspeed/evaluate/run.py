"""Evaluates the model of a run on its own validation split or on other text."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch

from zenspeed.data.prepare import encode_held_out, prepare
from zenspeed.data.shards import TokenDataset
from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.language import document_losses, language_figures
from zenspeed.run import OpenRun, open_run


def evaluate_run(folder: Path, source: str | None = None, checkpoint: str | None = None) -> dict[str, Figure]:
    """Figures of a run's checkpoint on `source` (file, folder or glob; None: its validation split), in the run's precision."""
    opened = open_run(folder, checkpoint)
    with tempfile.TemporaryDirectory(prefix="zenspeed-evaluate-") as shards:
        if source is None:
            dataset = prepare(opened.recipe).validation
        else:
            dataset = encode_held_out(opened.recipe.data, source, opened.tokenizer, Path(shards))
        return _figures(opened, dataset)


def _figures(opened: OpenRun, dataset: TokenDataset) -> dict[str, Figure]:
    recipe = opened.recipe
    bf16 = recipe.train.precision == "bf16"
    losses, tokens = document_losses(
        opened.model,
        dataset,
        recipe.model.context,
        recipe.evaluate.batch_size or recipe.train.micro_batch_size or 1,
        torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext(),
        attend_across_documents=recipe.data.attend_across_documents,
    )
    return language_figures(losses, tokens, dataset.document_bytes)

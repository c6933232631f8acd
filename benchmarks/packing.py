"""Fine-tuning on texts of uneven length: packed, of like length together, and padded, in texts per second for the same model.

    python benchmarks/packing.py

A BERT of MiniLM's shape (6 × 384) with a label head trains on paragraphs of Python's documentation, cut to 256 tokens, in bf16.
The ways take turns, A B C A B C …; the figure is the median round. `padded` pads each batch to its longest text, `full` every
text to 256.
The same rows give the same loss whichever way (checked). Results go to benchmarks/results/packing.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zenspeed.config import load
from zenspeed.data.python_docs import python_docs
from zenspeed.engine import Engine
from zenspeed.machine import environment, keep_memory
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe
from zenspeed.tasks.classification import ClassificationTask

ROOT = Path(__file__).resolve().parents[1]
LONGEST, BATCH = 256, 32


class Full(ClassificationTask):
    """Every sequence is as wide as the longest text of all."""

    def collate(self, examples: Any, indices: np.ndarray, *, packed: bool, seed: int | None = None) -> Any:
        batch = super().collate(examples, indices, packed=False, seed=seed)
        for name, empty in (("tokens", self.padding), ("documents", -1)):
            tensor = batch.inputs[name]
            batch.inputs[name] = torch.nn.functional.pad(tensor, (0, LONGEST - tensor.shape[1]), value=empty)
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="updates of a round")
    options = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as folder, world() as here:
        table = Path(folder) / "docstrings.csv"
        write_table(table)
        ways = {name: Way(name, table, here) for name in ("packed", "bucketed", "padded", "full")}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                took = way.run(options.steps)
                if number:
                    seconds[name].append(took)
    texts = options.steps * BATCH
    rates = {name: texts / statistics.median(s) for name, s in seconds.items()}
    lengths = ways["packed"].task.train.tokens.lengths
    print(
        f"{len(lengths):,} texts, mean {lengths.mean():.0f} tokens, longest {lengths.max()}; {torch.get_num_threads()} threads"
    )
    for name, rate in rates.items():
        spread = f"{texts / max(seconds[name]):.1f}–{texts / min(seconds[name]):.1f}"
        print(
            f"{name:9} {rate:7.1f} texts/s  ({spread})   packed is {rates['packed'] / rate:.2f} ×   loss {ways[name].first:.4f}"
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = {
        "texts_per_second": rates, "rounds": options.rounds, "mean_tokens": float(lengths.mean()),
        "commit": commit, "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment(),
    }  # fmt: skip
    with (ROOT / "benchmarks" / "results" / "packing.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


class Way:
    """One way of batching, with a model and an engine of its own."""

    def __init__(self, name: str, table: Path, here: Any) -> None:
        batching = {"full": "padded"}.get(name, name)
        sets = [
            "task.kind=classification", f"data.source={table}", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=8192",
            "model.preset=bert", "model.layers=6", "model.width=384", "model.heads=12", f"model.context={LONGEST}",
            f"train.batching={batching}", f"train.batch_size={BATCH}", f"train.micro_batch_size={BATCH}",
            "optim.name=adamw", "optim.lr=5e-5",
        ]  # fmt: skip
        recipe = load(Recipe, None, sets)
        self.task = (Full if name == "full" else ClassificationTask)(recipe, None)
        model = self.task.build_model(1)
        plans = plan_optimizers(model, recipe.optim, torch.bfloat16)
        mesh = build_mesh(here, None)
        self.engine = Engine(model, plans, mesh, ZeroOptions(), compute_dtype=torch.bfloat16, clip=1.0)
        self.samples, self.first = 0, float("nan")
        with torch.no_grad(), self.engine.autocast():  # one loss on the same rows, to see that the ways agree
            model.eval()
            rows = np.arange(BATCH)
            self.first = float(self.task.loss(model, self.task.collate(self.task.train, rows, packed=name == "packed"))) / BATCH
            model.train()

    def run(self, steps: int) -> float:
        """Seconds for so many updates of texts of mean length: which texts come when differs between the ways."""
        start, tokens = time.perf_counter(), 0
        for _ in range(steps):
            batches = self.task.micro_batches(self.samples, BATCH, BATCH)
            self.engine.train_step(batches, self.task.loss, BATCH, 1.0)
            self.samples += BATCH
            tokens += sum(map(self.task.num_tokens, batches))
        mean = float(self.task.train.tokens.lengths.mean())
        return (time.perf_counter() - start) * steps * BATCH * mean / tokens


def write_table(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        pieces = sorted({piece.strip() for text in python_docs() for piece in text.split("\n\n") if len(piece) > 40})
        for text in pieces[::5]:
            rows.writerow([text, "returns" if "eturn" in text else "other"])


if __name__ == "__main__":
    main()

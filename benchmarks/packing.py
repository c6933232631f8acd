"""Fine-tuning on texts of uneven length: packed, grouped by length, and padded, in texts per second for the same model.

    python benchmarks/packing.py                 # 704 paragraphs of Python's documentation
    python benchmarks/packing.py --texts 256     # fewer: Hugging Face's grouping then has fewer batches to sort

A BERT of MiniLM's shape (6 × 384) with a label head trains on paragraphs of Python's documentation, cut to 256 tokens, in bf16,
batches of 32. Every way goes through the same texts, all of them, once a round; the ways take turns, and the figure is the
median round.

    packed     texts in one sequence, attention inside each        grouped   batches of Hugging Face's `group_by_length`
    bucketed   our own grouping: 50 batches sorted together        padded    random batches, each padded to its longest
    plain      the padded batches through transformers' BERT of the same shape, under autocast, with fused AdamW and clipping

Results go to benchmarks/results/packing.jsonl.
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
from zenspeed.data.examples import EpochOrder
from zenspeed.data.packing import pack_in_one, pad
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=704)
    options = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as folder, world() as here:
        table = Path(folder) / "docstrings.csv"
        write_table(table)
        task, engine = set_up(table, here)
        lengths = task.train.tokens.lengths
        chosen = np.random.default_rng(0).permutation(len(lengths))[: options.texts]
        ways = orders(lengths[chosen])
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        plain = PlainLoop()
        for number in range(options.rounds + 1):
            for name, order in ways.items():
                texts, steps = chosen[order], 4 if number == 0 else None
                took = plain.run(task, texts, steps) if name == "plain" else run(task, engine, texts, name == "packed", steps)
                if number:
                    seconds[name].append(took)
    report(lengths[chosen], ways, seconds)


def orders(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The order of texts of each way; batches are BATCH texts one after another."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    grouped = get_length_grouped_indices(lengths.tolist(), BATCH, generator=torch.Generator().manual_seed(0))
    bucketed = EpochOrder(0, lengths, BATCH, bucketed=True).take(0, len(lengths))
    anyhow = np.arange(len(lengths))  # they were drawn at random
    return {"packed": anyhow, "grouped": np.array(grouped), "bucketed": bucketed, "padded": anyhow, "plain": anyhow}


def set_up(table: Path, here: Any) -> tuple[ClassificationTask, Engine]:
    sets = [
        "task.kind=classification", f"data.source={table}", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=8192",
        "model.preset=bert", "model.layers=6", "model.width=384", "model.heads=12", f"model.context={LONGEST}",
        f"train.batch_size={BATCH}", f"train.micro_batch_size={BATCH}", "optim.name=adamw", "optim.lr=5e-5",
    ]  # fmt: skip
    recipe = load(Recipe, None, sets)
    task = ClassificationTask(recipe, None)
    plans = plan_optimizers(model := task.build_model(1), recipe.optim, torch.bfloat16)
    return task, Engine(model, plans, build_mesh(here, None), ZeroOptions(), compute_dtype=torch.bfloat16, clip=1.0)


def run(task: ClassificationTask, engine: Engine, texts: np.ndarray, packed: bool, steps: int | None) -> float:
    """Seconds for one pass over `texts`, or for its first `steps`."""
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH)[:steps]:
        indices = texts[first : first + BATCH]
        batch = task.collate(task.train, indices, packed=packed, seed=first)
        engine.train_step([batch], task.loss, len(indices), 1.0)
    return time.perf_counter() - start


class PlainLoop:
    """What one writes without us: the same shape by transformers, batches padded to their longest."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            max_position_embeddings=LONGEST,
        )  # fmt: skip
        self.model = BertForSequenceClassification(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, fused=True)

    def run(self, task: ClassificationTask, texts: np.ndarray, steps: int | None) -> float:
        """Seconds for one pass over `texts`, or for its first `steps`."""
        start = time.perf_counter()
        for first in range(0, len(texts), BATCH)[:steps]:
            rows = [task.train.tokens[int(i)] for i in texts[first : first + BATCH]]
            ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            for row, tokens in zip(ids, rows, strict=True):
                row[: len(tokens)] = torch.as_tensor(tokens.astype(np.int64))
            with torch.autocast("cpu", torch.bfloat16):
                labels = torch.zeros(len(rows), dtype=torch.long)
                loss = self.model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start


def report(lengths: np.ndarray, ways: dict[str, np.ndarray], seconds: dict[str, list[float]]) -> None:
    rates = {name: len(lengths) / statistics.median(s) for name, s in seconds.items()}
    print(
        f"{len(lengths):,} texts, mean {lengths.mean():.0f} tokens, longest {lengths.max()}; {torch.get_num_threads()} threads"
    )
    padding = {}
    for name, rate in rates.items():
        batches = [lengths[ways[name][i : i + BATCH]] for i in range(0, len(lengths), BATCH)]
        places = sum(
            (pack_in_one(b) if name == "packed" else pad(b)).width * (1 if name == "packed" else len(b)) for b in batches
        )
        padding[name] = places / int(lengths.sum()) - 1
        spread = f"{len(lengths) / max(seconds[name]):.1f}–{len(lengths) / min(seconds[name]):.1f}"
        print(
            f"{name:9} {rate:7.1f} texts/s  ({spread})   packed is {rates['packed'] / rate:.2f} ×   padding {padding[name]:.1%}"
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = {
        "texts_per_second": rates, "padding": padding, "texts": len(lengths), "mean_tokens": float(lengths.mean()),
        "commit": commit, "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment(),
    }  # fmt: skip
    with (ROOT / "benchmarks" / "results" / "packing.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_table(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        pieces = sorted({piece.strip() for text in python_docs() for piece in text.split("\n\n") if len(piece) > 40})
        for text in pieces[::5]:
            rows.writerow([text, "returns" if "eturn" in text else "other"])


if __name__ == "__main__":
    main()

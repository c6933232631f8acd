"""Does a Transformer of 64 layers train from the first step, without warm-up? With ReZero, with norms after, with norms before.

    python benchmarks/rezero.py

Character by character on the topics of Python's own help (`pydoc_data`), Adam at a constant rate from step 1. The claim of
arXiv 2003.04887 is that with ReZero signals pass any depth unchanged at the start. All placements see the same batches,
have the same size, and are tried at each of several learning rates; each curve is the placement's best rate, by its last
training losses with the first seed, with all seeds drawn. "Frequencies of characters alone" is where a model stays that passes
on nothing.
Appends a line to benchmarks/results/rezero.jsonl and draws docs/rezero.svg.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer

ROOT = Path(__file__).resolve().parents[1]
PLACEMENTS: dict[str, dict[str, Any]] = {
    "rezero": {"norm_placement": "rezero"},
    "post": {"norm_placement": "post"},
    "pre": {"norm_placement": "pre"},
}
TITLES = {"rezero": "ReZero", "post": "norm after each part (2017)", "pre": "norm before each part"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    text = "".join(importlib.import_module("pydoc_data.topics").topics.values())
    alphabet = sorted(set(text))
    stream = torch.tensor([alphabet.index(c) for c in text])
    frequencies = torch.tensor([n / len(text) for n in Counter(text).values()])
    entropy = float(-(frequencies * frequencies.log()).sum())

    began, best = time.perf_counter(), {}
    for placement in PLACEMENTS:
        # The rate is chosen by the first seed alone; the others say whether it was luck.
        first = {lr: train(placement, lr, options.seeds[0], stream, len(alphabet), options) for lr in options.lrs}
        lr = min(first, key=lambda r: last(first[r]))
        curves = [first[lr], *(train(placement, lr, s, stream, len(alphabet), options) for s in options.seeds[1:])]
        ends = [last(curve) for curve in curves]
        best[placement] = {
            "lr": lr, "last_losses": [round(x, 4) for x in ends],
            "by_lr": {str(r): round(last(c), 4) for r, c in first.items()}, "curves": curves,
        }  # fmt: skip
        print(f"{TITLES[placement]:30} lr {lr:g}: {', '.join(f'{x:.3f}' for x in ends)} nats a character", flush=True)
    print(f"{'frequencies alone':30} {entropy:.3f}")
    draw(best, entropy, options.layers)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    line = {
        **{k: getattr(options, k) for k in ("layers", "width", "context", "batch", "steps", "seeds")},
        "characters": len(text), "frequencies_alone": round(entropy, 4),
        "placements": {p: {k: v for k, v in r.items() if k != "curves"} for p, r in best.items()},
        "seconds": round(time.perf_counter() - began), "machine": "2 cores of an AMD EPYC Zen 4", "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    with (ROOT / "benchmarks/results/rezero.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def train(placement: str, lr: float, seed: int, stream: Tensor, vocab_size: int, options: argparse.Namespace) -> list[float]:
    """Training loss in nats a character, step by step; infinite from where it is no number."""
    sizes = {"layers": options.layers, "width": options.width, "heads": 4, "context": options.context}
    norm = {"norm": "layernorm", "norm_epsilon": 1e-5}
    model = Transformer(ModelConfig(preset="rezero", **sizes, **norm, **PLACEMENTS[placement]), vocab_size)
    model.init_weights(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(options.steps):
        starts = torch.randint(len(stream) - options.context - 1, (options.batch,), generator=generator)
        windows = stream[starts[:, None] + torch.arange(options.context + 1)]
        loss = model(windows[:, :-1], targets=windows[:, 1:]) / windows[:, 1:].numel()
        if not math.isfinite(loss.item()):
            return losses + [math.inf] * (options.steps - len(losses))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def last(curve: list[float]) -> float:
    """Mean of the last tenth."""
    tail = curve[-max(1, len(curve) // 10) :]
    return sum(tail) / len(tail)


def draw(best: dict[str, dict[str, Any]], entropy: float, layers: int) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "zenspeed", "path.simplify_threshold": 1.0}
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for color, (placement, result) in zip(("#0072b2", "#d55e00", "#009e73"), best.items(), strict=True):
        for number, curve in enumerate(result["curves"]):
            smooth = [sum(curve[max(0, i - 4) : i + 1]) / len(curve[max(0, i - 4) : i + 1]) for i in range(0, len(curve), 3)]
            label = f"{TITLES[placement]}, rate {result['lr']:g}" if number == 0 else None
            axes.plot(range(0, len(curve), 3), smooth, color=color, linewidth=1, label=label)
    axes.axhline(entropy, color="grey", linestyle=":", linewidth=1, label="frequencies of characters alone")
    axes.set_xlabel(f"updates, {layers} layers, no warm-up")
    axes.set_ylabel("training loss, nats a character")
    axes.set_ylim(top=min(6.0, axes.get_ylim()[1]))
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(ROOT / "docs/rezero.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

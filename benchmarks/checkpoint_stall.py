"""How long training waits for its checkpoints: python benchmarks/checkpoint_stall.py [section.key=value …]

Trains the demo's shape with a checkpoint every 20 steps and reads from metrics.jsonl how long each one held the loop up. The
share is of all time: what a run loses that saves so often.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import zenspeed
from zenspeed.config import load
from zenspeed.runlog import read_metrics


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"run.folder={folder}/run", "train.steps=101", "checkpoint.every=20", "evaluate.every=0", *sys.argv[1:]]
        recipe = load(zenspeed.Recipe, Path("recipes/demo.yaml"), sets)
        records = read_metrics(zenspeed.train(recipe).folder)
    stalls = [r["checkpoint_stall_seconds"] for r in records if "checkpoint_stall_seconds" in r]
    times = [b["elapsed_seconds"] - a["elapsed_seconds"] for a, b in itertools.pairwise(r for r in records if "loss" in r)]
    share = sum(stalls) / (sum(times) + sum(stalls))
    print(
        f"{len(stalls)} checkpoints: {1e3 * statistics.median(stalls):.1f} ms each (most {1e3 * max(stalls):.1f}), "
        f"{100 * share:.2f} % of training"
    )


if __name__ == "__main__":
    main()

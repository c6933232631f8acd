"""How long training waits for its evaluations and checkpoints: python benchmarks/stalls.py [section.key=value …]

Trains the demo as its recipe says, so with about ten evaluations, which are to take a tenth of the time at most; but saves a
checkpoint every 20 steps, where once a minute is usual. metrics.jsonl says how long each held the loop up. The last evaluation
comes after training, and is not counted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import zenspeed
from zenspeed.config import load
from zenspeed.runlog import read_metrics


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"run.folder={folder}/run", "checkpoint.every=20", *sys.argv[1:]]
        records = read_metrics(zenspeed.train(load(zenspeed.Recipe, Path("recipes/demo.yaml"), sets)).folder)
    steps = [r["elapsed_seconds"] for r in records if "loss" in r]
    last = max(r["step"] for r in records if "loss" in r)
    for what, key in (("evaluations", "evaluation_seconds"), ("checkpoints", "checkpoint_stall_seconds")):
        stalls = [r[key] for r in records if key in r and r["step"] < last]
        each = f"{1e3 * statistics.median(stalls or [0]):.1f} ms each (most {1e3 * max(stalls, default=0):.1f})"
        print(f"{len(stalls)} {what}: {each}, {sum(stalls) / (steps[-1] - steps[0]):.2%} of training")


if __name__ == "__main__":
    main()

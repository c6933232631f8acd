"""Memory of a rank at each stage of ZeRO, of one and of two ranks, beside the theory: python benchmarks/memory.py

GPT-2's shape 8 × 768 (60 M weights), four sequences of 128 tokens a rank, one thread a rank, AdamW, bf16 products: eight
updates of `zenspeed train`, and the largest resident memory that its first rank logs. Theory: what one rank at stage 0 holds
beside its model states (Python, torch, activations), and the states of the layout by ZeRO's formulas
(zenspeed/plan/estimate.py). Memory does not depend on how busy the machine is. Results go to benchmarks/results/memory.jsonl, a
line a run of this script, of which `python benchmarks/performance_page.py` draws a plot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_speed import HERE, git_commit

from zenspeed.machine import environment
from zenspeed.plan.estimate import zero_bytes
from zenspeed.plan.layout import Layout
from zenspeed.runlog import read_metrics

SETS = [
    "model.preset=gpt2", "model.layers=8", "model.width=768", "model.heads=12", "model.context=128",
    "tokenizer.vocab_size=4096",
    "train.micro_batch_size=4", "train.steps=8", "train.precision=bf16", "train.compile=false", "optim.name=adamw",
    "optim.lr=6e-4", "evaluate.every=0", "checkpoint.every=1000", "data.validation=0.002", "log.tensorboard=false",
    "sample.max_tokens=1",
]  # fmt: skip
WIDTH, LAYERS, CONTEXT, VOCAB = 768, 8, 128, 4096
WEIGHTS = LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + (VOCAB + CONTEXT + 2) * WIDTH


def main() -> None:
    cases = [(ranks, zero, resident_bytes(ranks, zero)) for ranks in (1, 2) for zero in range(4)]
    rest = cases[0][2] - state_bytes(1, 0)
    rows = []
    for ranks, zero, held in cases:
        states = state_bytes(ranks, zero)
        rows.append({"ranks": ranks, "zero": zero, "bytes": held, "states": states, "theory": rest + states})
    for row in rows:
        print(
            f"{row['ranks']} ranks, stage {row['zero']}: {row['bytes'] / 2**20:,.0f} MiB, theory {row['theory'] / 2**20:,.0f} "
            f"({row['bytes'] / row['theory'] - 1:+.1%}), of which model states {row['states'] / 2**20:,.0f}"
        )
    record = {
        "weights": WEIGHTS, "rows": rows, "commit": git_commit(), "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": environment(),
    }  # fmt: skip
    with (HERE / "results" / "memory.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def state_bytes(ranks: int, zero: int) -> float:
    """Of weights, gradients and Adam's numbers of one rank, all fp32."""
    return sum(zero_bytes(WEIGHTS, Layout(data=ranks, zero=zero)))


def resident_bytes(ranks: int, zero: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        sets = [*SETS, f"train.batch_size={4 * ranks}", f"parallel.zero={zero}", f"run.folder={folder}/run"]
        launch = ["launch", "-n", str(ranks)] if ranks > 1 else []
        command = [sys.executable, "-m", "zenspeed", *launch, "train", *(part for one in sets for part in ("--set", one))]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return max(int(r["memory_bytes"]) for r in read_metrics(Path(folder) / "run") if "memory_bytes" in r)


if __name__ == "__main__":
    main()

"""Plans for this machine beside runs on it: memory of the process and tokens per second.

    python benchmarks/plan_here.py

For each model, batch, stage and number of processes: `zenspeed plan` in a process of its own, then a short run of the same
recipe through `zenspeed train`, whose metrics give the median rate and the largest memory. Appends to results/plan_here.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zenspeed.machine import processor_name

GRID: list[tuple[int, int, int, int, int, int]] = [  # layers, width, context, batch, processes, stage
    (4, 128, 128, 8, 1, 0), (6, 384, 256, 8, 1, 0), (6, 384, 256, 16, 1, 0), (12, 256, 256, 8, 1, 0), (4, 512, 512, 4, 1, 0),
    (6, 384, 256, 8, 2, 0), (6, 384, 256, 8, 2, 1), (6, 384, 256, 8, 2, 2), (6, 384, 256, 8, 2, 3), (8, 768, 128, 8, 1, 0),
    (6, 384, 256, 8, 2, 3), (4, 512, 512, 4, 2, 3), (12, 256, 256, 16, 2, 3), (12, 256, 256, 16, 2, 1),
]  # fmt: skip


def run(words: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-m", "zenspeed", *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")


def one(case: tuple[int, int, int, int, int, int], folder: Path) -> dict[str, Any]:
    layers, width, context, batch, ranks, zero = case
    sets = [
        f"model.layers={layers}", f"model.width={width}", f"model.heads={width // 64}", f"model.context={context}",
        f"train.batch_size={batch}", f"parallel.zero={zero}", "tokenizer.vocab_size=4096", "train.steps=14", "evaluate.every=0",
        "log.tensorboard=false", "sample.max_tokens=1", "optim.name=adamw", "data.validation=0.002",
        "checkpoint.every=5",
    ]  # fmt: skip
    options = [part for key in sets for part in ("--set", key)]
    run(["plan", *options, "--ranks", str(ranks), "--json", str(folder / "plan.json")])
    launch = ["launch", "-n", str(ranks)] if ranks > 1 else []
    run([*launch, "train", *options, "--set", f"run.folder={folder / 'run'}"])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_second" in line][4:]
    best = json.loads((folder / "plan.json").read_text())["layouts"][0]
    return {
        "case": dict(zip(("layers", "width", "context", "batch", "ranks", "zero"), case, strict=True)),
        "tokens_per_second": [best["tokens_per_second"], statistics.median(s["tokens_per_second"] for s in steps)],
        "memory_bytes": [best["memory_bytes"]["total"], max(s["memory_bytes"] for s in steps)],
    }


def main() -> None:
    path = Path(__file__).parent / "results" / "plan_here.jsonl"
    for case in GRID:
        with tempfile.TemporaryDirectory() as folder:
            found = one(case, Path(folder)) | {"machine": processor_name(), "time": time.strftime("%Y-%m-%d %H:%M")}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        (rate, ran), (planned, held) = found["tokens_per_second"], found["memory_bytes"]
        print(
            f"{case}: tokens/s {rate:,.0f} against {ran:,.0f} ({rate / ran - 1:+.0%}), "
            f"GB {planned / 1e9:.2f} against {held / 1e9:.2f} ({planned / held - 1:+.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()

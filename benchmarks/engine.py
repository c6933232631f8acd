"""Tokens per second and memory of a loop under `zenspeed.initialize`, beside DDP, fully_shard and released DeepSpeed.

    python benchmarks/engine.py --deepspeed-python VENV/bin/python      (an environment with torch and deepspeed)

All systems run the same model (GPT-2's shape, 6 × 384, context 256), weights, real tokens and steps in bf16 with fused AdamW
and clipping. They are started together and take turns, A B C A B C …, each while the others sleep; the figure is the median
round. Losses are compared: the mean over all steps must agree within 1 %. Results go to benchmarks/results/engine.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKENS_PER_STEP = 4096
CONTEXT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed-python", help="the interpreter of an environment with deepspeed; left out: not compared")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round")
    options = parser.parse_args()
    print(f"{'stage':>5} {'system':12} {'tokens/s':>9} {'spread':>13} {'peak MiB':>8} {'zenspeed is':>12} {'mean loss':>10}")
    for stage in options.stages:
        rows = compare(stage, options)
        ours = rows["zenspeed"]["tokens_per_second"]
        for name, row in rows.items():
            ratio = "" if name == "zenspeed" else f"{ours / row['tokens_per_second']:.2f} ×"
            spread = f"{row['slowest']:,.0f}–{row['fastest']:,.0f}"
            print(
                f"{stage:5d} {name:12} {row['tokens_per_second']:9,.0f} {spread:>13} {row['peak_mib']:8,.0f} {ratio:>12} "
                f"{row['loss']:10.4f}",
                flush=True,
            )
        write(stage, options, rows)
        reference = rows["ddp"]["loss"]
        for name, row in rows.items():
            if abs(row["loss"] / reference - 1) > 0.01:
                print(f"      {name}: its mean loss differs from DDP's by {100 * (row['loss'] / reference - 1):+.1f} %")


def compare(stage: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    systems = {"zenspeed": sys.executable, "ddp": sys.executable, "fully_shard": sys.executable}
    if options.deepspeed_python:
        systems["deepspeed"] = options.deepspeed_python
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokens(folder / "tokens.npy")
        processes = [p for system, python in systems.items() for p in start(system, python, stage, folder, options)]
        try:
            seconds: dict[str, list[float]] = {system: [] for system in systems}
            losses: dict[str, list[float]] = {system: [] for system in systems}
            peaks = dict.fromkeys(systems, 0.0)
            for number in range(options.rounds + 1):  # the first is for warming up
                for system in systems:
                    results = turn(system, number, folder, processes, options.ranks)
                    peaks[system] = max(r["peak_mib"] for r in results)
                    losses[system] += [statistics.mean(step) for step in zip(*(r["losses"] for r in results), strict=True)]
                    if number:
                        seconds[system].append(max(r["seconds"] for r in results))
        finally:
            (folder / "end").touch()
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
    tokens = options.steps * TOKENS_PER_STEP
    return {
        system: {
            "tokens_per_second": tokens / statistics.median(seconds[system]),
            "slowest": tokens / max(seconds[system]),
            "fastest": tokens / min(seconds[system]),
            "peak_mib": peaks[system],
            "loss": statistics.mean(losses[system]),
        }
        for system in systems
    }


def start(system: str, python: str, stage: int, folder: Path, options: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    micro = TOKENS_PER_STEP // CONTEXT // options.ranks
    out = []
    for rank in range(options.ranks):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(options.ranks), "LOCAL_WORLD_SIZE": str(options.ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(max(1, 2 // options.ranks)),
            "DS_ACCELERATOR": "cpu",
        }  # fmt: skip
        arguments = [system, str(stage), str(micro), str(options.steps), str(folder)]
        with (folder / f"{system}-{rank}.log").open("wb") as log:
            command = [python, str(ROOT / "benchmarks" / "engine_worker.py"), *arguments]
            out.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return out


def turn(system: str, number: int, folder: Path, processes: list[subprocess.Popen[bytes]], ranks: int) -> list[dict[str, Any]]:
    """One round of one system; the others wait."""
    (folder / f"{system}-go-{number}").touch()
    done = [folder / f"{system}-done-{number}-{rank}" for rank in range(ranks)]
    while not all(path.exists() for path in done):
        if any(p.poll() for p in processes):
            logs = "\n".join(f"{p.name}:\n{p.read_text()[-2000:]}" for p in folder.glob(f"{system}-*.log"))
            raise SystemExit(f"{system} has ended:\n{logs}")
        time.sleep(0.05)
    return [json.loads(path.read_text()) for path in done]


def save_tokens(path: Path) -> None:
    """Python's own documentation in 4,096 tokens."""
    import numpy as np

    from zenspeed.config import load
    from zenspeed.data.prepare import prepare
    from zenspeed.recipe import Recipe

    dataset = prepare(load(Recipe, None, ["tokenizer.vocab_size=4096"])).train
    np.save(path, dataset.read(0, dataset.num_tokens))


def write(stage: int, options: argparse.Namespace, rows: dict[str, Any]) -> None:
    from zenspeed.machine import environment

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = {
        "stage": stage, "ranks": options.ranks, "rounds": options.rounds, "steps": options.steps, "systems": rows,
        "commit": commit, "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment(),
    }  # fmt: skip
    results = ROOT / "benchmarks" / "results" / "engine.jsonl"
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

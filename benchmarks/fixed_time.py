"""Validation loss after N seconds of wall time from process start, on one small text, character by character.

    python benchmarks/fixed_time.py --data tinyshakespeare.txt --seconds 15 30 60 130

Every figure is one run of `zenspeed train recipes/characters.yaml` as a user would start it: Python's start, imports, the
tokenizer, training, and the evaluation on the whole validation split (the last tenth of the text, in windows of the training
context) all lie within the time. Results are appended to benchmarks/results/fixed_time.jsonl with machine, date and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="the text; first 90 %% of its characters train, last 10 %% validation"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[15, 130])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", action="append", default=[], help="passed on to zenspeed train")
    parser.add_argument(
        "--part", choices=["test", "tune"], default="test", help="tune: validate on the last tenth of the training part"
    )
    options = parser.parse_args()
    results = [run(options.data, s, seed, options.set, options.part) for s in options.seconds for seed in options.seeds]
    print(f"\n{'seconds':>8} {'wall':>7} {'steps':>6} {'validation loss':>16}")
    for r in results:
        print(f"{r['seconds']:8.0f} {r['wall_seconds']:7.1f} {r['steps']:6d} {r['validation_loss']:16.4f}")


def run(data: Path, seconds: float, seed: int, sets: list[str], part: str) -> dict[str, object]:
    text = data.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    train, validation = text[:cut], text[cut:]
    if part == "tune":
        cut = int(len(train) * 0.9)
        train, validation = train[:cut], train[cut:]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "train.txt").write_text(train, encoding="utf-8")
        (work / "validation.txt").write_text(validation, encoding="utf-8")
        values = [
            "data.source=train.txt", "data.validation=validation.txt", "data.cache=cache", "run.folder=out", f"run.seed={seed}",
            f"train.minutes={seconds / 60}", *sets,
        ]  # fmt: skip
        command = [sys.executable, "-m", "zenspeed", "train", str(ROOT / "recipes" / "characters.yaml")]
        command += [part for value in values for part in ("--set", value)]
        start = time.perf_counter()
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        records = [json.loads(line) for line in (work / "out" / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    result = {
        "seconds": seconds, "evaluated_seconds": last["elapsed_seconds"], "wall_seconds": wall, "steps": last["step"],
        "tokens": last["tokens"], "validation_loss": last["validation_loss"], "training_loss": records[-2]["loss"],
        "seed": seed, "part": part, "sets": sets, **machine(),
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / "fixed_time.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))
    return result


def machine() -> dict[str, object]:
    from zenspeed.machine import processor_name, usable_cores

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "machine": f"{processor_name()}, {usable_cores()} cores", "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"), "commit": commit,
    }  # fmt: skip


if __name__ == "__main__":
    main()

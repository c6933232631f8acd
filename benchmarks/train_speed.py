"""Tokens per second of `zenspeed train` beside its peers, and their memory.

    python benchmarks/train_speed.py                                 GPT-2's shape 6 × 384, context 256, vocabulary 4,096
    python benchmarks/train_speed.py --vocab 50257
    python benchmarks/train_speed.py --systems zenspeed ddp_compile --width 128 --layers 4 --heads 4 --context 64

Every system trains the same model from the same weights on the same tokens, so many a step, with AdamW and clipping, in bf16
(nanoGPT in fp32, all it does on a CPU). zenspeed runs through its front door, as its users run it. All are started
one after the other, stopped when warm (SIGSTOP), and take turns, A B C A B C …: one goes on for some steps while all others
are stopped. A figure is the median round. Losses of the first steps are compared. Peers live in environments of their own,
made from benchmarks/requirements/ when first needed, over the torch of this interpreter, so that all run on the same.

Results go to benchmarks/results/train_speed.jsonl; `python benchmarks/performance_page.py` makes docs/performance.md of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
RESULTS = HERE / "results" / "train_speed.jsonl"
# System -> processes, requirements of its environment (None: this one).
SYSTEMS: dict[str, tuple[int, str | None]] = {
    "zenspeed": (1, None),
    "hf": (1, "transformers"),
    "hf_compile": (1, "transformers"),
    "deepspeed_zero1": (2, "deepspeed"),
    "deepspeed_zero2": (2, "deepspeed"),
    "ddp": (2, None),
    "ddp_compile": (2, None),
    "fully_shard": (2, None),
    "litgpt": (1, "litgpt"),
    "nanogpt": (1, None),
}
OWN_WEIGHTS = {"litgpt"}  # has no learned positions
SHAPE = ("layers", "width", "heads", "context")
COMPARED_STEPS = 4
STALL_SECONDS = 300


@dataclass
class Running:
    name: str
    folder: Path
    processes: list[subprocess.Popen[bytes]]
    started: float
    seconds: list[float] = field(default_factory=list)  # of each round
    first_step: float = 0.0

    def signal(self, number: int) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / ("metrics.jsonl" if self.name.startswith("zenspeed") else "metrics-0.jsonl")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [r for r in found if "loss" in r]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Until there are `count` records; ends the benchmark where the system has."""
        seen, since = 0, time.monotonic()
        while len(records := self.records()) < count:
            if len(records) > seen:
                seen, since = len(records), time.monotonic()
            if any(p.poll() is not None for p in self.processes) or time.monotonic() - since > STALL_SECONDS:
                logs = "\n".join(p.read_text(errors="replace")[-3000:] for p in self.folder.parent.glob(f"{self.name}-*.log"))
                raise RuntimeError(f"{self.name} has ended or stands still:\n{logs}")
            time.sleep(0.02)
        return records

    def turn(self, steps: int) -> None:
        self.signal(signal.SIGCONT)
        before = len(self.records())
        records = self.wait_for(before + 1 + steps)  # the first of them was cut in two by the pause
        self.signal(signal.SIGSTOP)
        took = records[before + steps]["elapsed_seconds"] - records[before]["elapsed_seconds"]
        self.seconds.append(took)

    def losses(self) -> list[float]:
        """The mean over ranks of the first steps."""
        files = [self.folder / f"metrics-{rank}.jsonl" for rank in range(len(self.processes))]
        if not files[0].exists():
            return [r["loss"] for r in self.records()][:COMPARED_STEPS]
        ranks = [[json.loads(line)["loss"] for line in f.read_text().splitlines()[:COMPARED_STEPS]] for f in files]
        return [statistics.mean(step) for step in zip(*ranks, strict=True)]

    def peak_bytes(self) -> int:
        """The most that all of its processes held, workers included."""
        total = 0
        for group in {p.pid for p in self.processes}:
            for status in Path("/proc").glob("[0-9]*/status"):
                with contextlib.suppress(OSError, ProcessLookupError):
                    if os.getpgid(int(status.parent.name)) == group:
                        line = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM")), "VmHWM: 0 kB")
                        total += 1024 * int(line.split()[1])
        return total


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="zenspeed-speed-") as name:
        folder = Path(name)
        task = prepare(folder, options)
        running: list[Running] = []
        peaks = [measure_peak()]
        try:
            for system in options.systems:
                running.append(start(system, folder, options))
                try:
                    warm(running[-1], options)
                except RuntimeError as error:
                    print(f"{system}: left out: {error}", file=sys.stderr)
                    end(running.pop())
            for _ in range(options.rounds):
                for system_ in running:
                    system_.turn(options.steps)
                peaks.append(measure_peak())
            rows = {r.name: row(r, task, options, max(peaks)) for r in running}
        finally:
            for system_ in running:
                end(system_)
    report(rows, task, max(peaks), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=[*SYSTEMS, "zenspeed_eager"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--warm", type=int, default=COMPARED_STEPS, help="steps before the first turn")
    parser.add_argument("--wait-for-compile", action="store_true", help="measures zenspeed after what it compiles by itself")
    parser.add_argument("--no-write", action="store_true", help="leaves benchmarks/results alone")
    return parser.parse_args()


# Before ---------------------------------------------------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Weights, tokens and settings that all systems get."""
    import numpy as np

    from zenspeed.config import dump, load
    from zenspeed.models.hf import to_huggingface
    from zenspeed.recipe import Recipe
    from zenspeed.tasks.open import open_task

    task: dict[str, Any] = {
        "layers": options.layers, "width": options.width, "heads": options.heads, "context": options.context,
        "vocab": options.vocab, "batch": max(2, options.tokens // options.context), "lr": 6e-4, "betas": [0.9, 0.95],
        "epsilon": 1e-8, "weight_decay": 0.1, "clip": 1.0,
    }  # fmt: skip
    recipe = load(Recipe, None, base={
        "run": {"folder": str(folder / "zenspeed")},
        "data": {"source": "python-docs", "attend_across_documents": True},
        "tokenizer": {"kind": "bpe", "vocab_size": min(4096, options.vocab)},
        "model": {"preset": "gpt2", "vocab_size": options.vocab, **{k: task[k] for k in SHAPE}},
        "train": {"steps": 100_000, "batch_size": task["batch"], "clip": task["clip"]},
        "optim": {
            "name": "adamw", "lr": task["lr"], "betas": task["betas"], "epsilon": task["epsilon"], "schedule": "constant",
            "weight_decay": task["weight_decay"], "warmup": 0,
        },
        "evaluate": {"every": 0}, "checkpoint": {"every": 100_000},
    })  # fmt: skip
    (folder / "recipe.yaml").write_text(dump(recipe))
    data = open_task(recipe, None)
    model = data.build_model(recipe.run.seed)
    to_huggingface(model, folder / "model")
    rows = data.micro_batches(0, [256 * task["batch"]])[0]
    windows = np.concatenate([rows.inputs["tokens"].numpy(), rows.targets[:, -1:].numpy()], axis=1)
    np.save(folder / "windows.npy", windows.astype(np.uint16))
    in_blocks = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".blocks." in f".{name}")
    # Of the scores only the half that a causal model needs; 2 products forward, 4 backward.
    task["flops_per_token"] = 6 * (in_blocks + options.layers * options.width * options.context + options.vocab * options.width)
    task["parameters"] = sum(p.numel() for p in model.parameters())
    (folder / "task.json").write_text(json.dumps(task))
    return task


def start(system: str, folder: Path, options: argparse.Namespace) -> Running:
    kind = "zenspeed" if system.startswith("zenspeed") else system
    ranks, requirements = SYSTEMS[kind]
    (folder / system).mkdir(exist_ok=True)
    started = time.time()
    if kind == "zenspeed":
        sets = ["--set", f"run.folder={folder / system}"]
        sets += ["--set", "train.compile=false"] if system == "zenspeed_eager" else []
        command = [sys.executable, "-m", "zenspeed", "train", str(folder / "recipe.yaml"), *sets]
        shutil.rmtree(folder / system)
        return Running(system, folder / system, [_open(command, folder, system, 0, {})], started)
    python = environment_of(requirements) if requirements else sys.executable
    command = [python, str(HERE / "train_peers.py"), system, str(folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": str(max(1, cores() // ranks)), "DS_ACCELERATOR": "cpu"}
    if requirements == "deepspeed":  # a build that was killed leaves a lock on which every later run hangs
        extensions = Path(python).parents[1] / "extensions"
        for lock in extensions.glob("**/lock"):
            lock.unlink()
        shared["TORCH_EXTENSIONS_DIR"] = str(extensions)
    if ranks > 1:
        shared |= {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    processes = [
        _open(command, folder, system, rank, shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}))
        for rank in range(ranks)
    ]
    return Running(system, folder / system, processes, started)


def _open(command: list[str], folder: Path, system: str, rank: int, more: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")} | more
    with (folder / f"{system}-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def environment_of(name: str) -> str:
    """The interpreter of the environment of `requirements`/`name`.txt, made when it is not there."""
    import torch

    file = HERE / "requirements" / f"{name}.txt"
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zenspeed" / "benchmarks"
    digest = hashlib.sha256(file.read_bytes() + torch.__version__.encode() + sys.executable.encode()).hexdigest()[:12]
    folder = base / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier try left
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        only_torch = folder / "torch"
        only_torch.mkdir()
        for part in Path(torch.__file__).parents[1].glob("*torch*"):  # and nothing else of this environment
            (only_torch / part.name).symlink_to(part)
        packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (packages / "torch_of_the_benchmark.pth").write_text(f"{only_torch}\n")
        needed = [r.split(";")[0] for r in importlib.metadata.requires("torch") or [] if "extra" not in r and "nvidia" not in r]
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "-r", str(file), "numpy", "safetensors", *needed], check=True
        )
        (folder / "made").touch()
    return str(python)


def warm(system: Running, options: argparse.Namespace) -> None:
    """The first steps, and where zenspeed compiles in the background, until it has."""
    records = system.wait_for(1)
    system.first_step = time.time() - system.started
    count = options.warm
    if system.name == "zenspeed":
        while options.wait_for_compile and not settled(system) and time.time() - system.started < 240:
            count = max(count, len(records) + 1)
            records = system.wait_for(count)
        count = max(count, len(records) + 2)
    system.wait_for(count)
    system.signal(signal.SIGSTOP)


def settled(system: Running) -> bool:
    """Whether it has said what it does about compiling."""
    log = (system.folder.parent / f"{system.name}-0.log").read_text(errors="replace")
    return "compile: on" in log or "compile: off" in log


def end(system: Running) -> None:
    system.signal(signal.SIGCONT)
    system.signal(signal.SIGKILL)
    for process in system.processes:
        process.wait()


# After ----------------------------------------------------------------------------------------------------------------


def measure_peak() -> float:
    """bf16 FLOP/s of a square product on all cores, in a process of its own."""
    code = (
        "import torch; from zenspeed.machine import measure_matmul as m; print(max(m(torch.bfloat16, 'cpu') for _ in range(3)))"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def row(system: Running, task: dict[str, Any], options: argparse.Namespace, peak: float) -> dict[str, Any]:
    tokens = options.steps * task["batch"] * task["context"]
    median = statistics.median(system.seconds)
    rate = tokens / median
    return {
        "tokens_per_second": rate,
        "slowest": tokens / max(system.seconds),
        "fastest": tokens / min(system.seconds),
        "seconds": system.seconds,
        "mfu": rate * task["flops_per_token"] / peak,
        "peak_bytes": system.peak_bytes(),
        "first_step_seconds": system.first_step,
        "losses": system.losses(),
    }


def report(rows: dict[str, dict[str, Any]], task: dict[str, Any], peak: float, options: argparse.Namespace) -> None:
    print(
        f"{task['layers']} × {task['width']}, context {task['context']}, vocabulary {task['vocab']:,}, "
        f"{task['parameters']:,} parameters, "
        f"{task['batch'] * task['context']:,} tokens a step; peak {peak / 1e9:,.0f} GFLOP/s"
    )
    print(
        f"{'system':16} {'tokens/s':>9} {'spread':>15} {'MFU':>6} {'peak MiB':>9} {'first step':>10} "
        f"{'zenspeed is':>11}  losses"
    )
    ours = rows.get("zenspeed", next(iter(rows.values())))
    for name, r in rows.items():
        ratio = statistics.median(theirs / mine for mine, theirs in zip(ours["seconds"], r["seconds"], strict=True))
        r["zenspeed_is"] = ratio
        far = max(abs(a / b - 1) for a, b in zip(r["losses"], ours["losses"], strict=False))
        r["largest_loss_difference"] = far
        remark = "own weights" if name in OWN_WEIGHTS else f"within {far:.1e}" + ("" if far < 0.01 else "  NOT THE SAME")
        spread = f"{r['slowest']:,.0f}–{r['fastest']:,.0f}"
        print(
            f"{name:16} {r['tokens_per_second']:9,.0f} {spread:>15} {r['mfu']:6.1%} {r['peak_bytes'] / 2**20:9,.0f} "
            f"{r['first_step_seconds']:8.1f} s {ratio:9.2f} ×  {remark}",
            flush=True,
        )
    if options.no_write:
        return
    from zenspeed.machine import environment

    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = {
        "task": task, "rounds": options.rounds, "steps": options.steps, "peak_flops": peak, "systems": rows,
        "commit": commit, "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment(),
    }  # fmt: skip
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cores() -> int:
    from zenspeed.machine import usable_cores

    return usable_cores()


if __name__ == "__main__":
    main()

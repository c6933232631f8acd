"""Tokens per second of `zenspeed train` beside its peers, and their memory.

    python benchmarks/train_speed.py                                 GPT-2's shape 6 × 384, context 256, vocabulary 4,096
    python benchmarks/train_speed.py --vocab 50257
    python benchmarks/train_speed.py --systems zenspeed ddp_compile --width 128 --layers 4 --heads 4 --context 64
    python benchmarks/train_speed.py --systems zenspeed ddp_compile --layout 2x1      both in two processes of one thread

Every system trains the same model from the same weights on the same tokens, so many a step, with AdamW and clipping, in bf16
(nanoGPT in fp32, all it does on a CPU). zenspeed runs through its front door, as its users run it. All are started
one after the other, stopped when warm (SIGSTOP), and take turns, A B C A B C …: one goes on for some steps while all others
are stopped. A figure is the median round. Losses of the first steps are compared. Peers live in environments of their own,
made from benchmarks/requirements/ when first needed, over the torch of this interpreter, so that all run on the same.
Unless --layout says otherwise, zenspeed has one process on all cores, and each peer as many processes as it is used with.

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
    "loop_compile": (1, None),
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
        before = len(self.records())
        self.seconds.append(self.until(before + 1 + steps) * steps)  # the first of them was cut in two by the pause

    def until(self, count: int) -> float:
        """Goes on until there are `count` records and is stopped; seconds of a step, the first one left out."""
        before = len(self.records())
        self.signal(signal.SIGCONT)
        records = self.wait_for(count)
        self.signal(signal.SIGSTOP)
        took: float = records[count - 1]["elapsed_seconds"] - records[before]["elapsed_seconds"]
        return took / (count - 1 - before)

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
    end_when_asked()
    with tempfile.TemporaryDirectory(prefix="zenspeed-speed-") as name:
        folder = Path(name)
        task = prepare(folder, options)
        running: list[Running] = []
        peaks = [measure_peak(options)]
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
                peaks.append(measure_peak(options))
            rows = {r.name: row(r, task, options, max(peaks)) for r in running}
        finally:
            for system_ in running:
                end(system_)
    report(rows, task, max(peaks), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=[*SYSTEMS, "zenspeed_eager"])
    parser.add_argument("--layout", type=layout, help="processes x threads of each system, such as 2x1; peers must suit it")
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
    options = parser.parse_args()
    for name in options.systems if options.layout else ():
        if not name.startswith("zenspeed") and SYSTEMS[name][0] != options.layout[0]:
            parser.error(f"--layout: {name} runs in {SYSTEMS[name][0]} processes, not {options.layout[0]}; leave it out")
    return options


def layout(text: str) -> tuple[int, int]:
    processes, threads = map(int, text.split("x"))
    return processes, threads


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
    if options.layout:
        task["layout"] = options.layout
    (folder / "task.json").write_text(json.dumps(task))
    return task


def start(system: str, folder: Path, options: argparse.Namespace) -> Running:
    ours = system.startswith("zenspeed")
    ranks, requirements = SYSTEMS["zenspeed" if ours else system]
    ranks, threads = options.layout or (ranks, max(1, cores() // ranks))
    started = time.time()
    if ours:
        sets = ["--set", f"run.folder={folder / system}"]
        sets += ["--set", "train.compile=false"] if system == "zenspeed_eager" else []
        command = [sys.executable, "-m", "zenspeed", "train", str(folder / "recipe.yaml"), *sets]
        shared = {"OMP_NUM_THREADS": str(threads)} if options.layout else {}
    else:
        (folder / system).mkdir(exist_ok=True)
        python = environment_of(requirements) if requirements else sys.executable
        command = [python, str(HERE / "train_peers.py"), system, str(folder)]
        shared = {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    if requirements == "deepspeed":  # a build that was killed leaves a lock on which every later run hangs
        extensions = Path(python).parents[1] / "extensions"
        for lock in extensions.glob("**/lock"):
            lock.unlink()
        shared["TORCH_EXTENSIONS_DIR"] = str(extensions)
    environments = [shared | rank for rank in ranks_of(ranks)] if ranks > 1 else [shared]
    processes = [open_process(command, folder, f"{system}-{rank}", more) for rank, more in enumerate(environments)]
    return Running(system, folder / system, processes, started)


def ranks_of(count: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each of `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def open_process(command: list[str], folder: Path, name: str, more: dict[str, str]) -> subprocess.Popen[bytes]:
    """`command` in a session of its own, so that all it starts is stopped with it; what it says goes to `name`.log."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")} | more
    with (folder / f"{name}.log").open("wb") as log:
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


def end_when_asked() -> None:
    """SIGTERM ends this process as an exception does, so that what it started, and stopped, is ended as well."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def end(system: Running) -> None:
    system.signal(signal.SIGCONT)
    system.signal(signal.SIGKILL)
    for process in system.processes:
        process.wait()


# After ----------------------------------------------------------------------------------------------------------------


def measure_peak(options: argparse.Namespace) -> float:
    """bf16 FLOP/s of a square product on the cores of the layout, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.layout[0] * options.layout[1] if options.layout else cores())}
    code = (
        "import torch; from zenspeed.machine import measure_matmul as m; print(max(m(torch.bfloat16, 'cpu') for _ in range(3)))"
    )
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


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

    record = {
        "task": task, "rounds": options.rounds, "steps": options.steps, "peak_flops": peak, "systems": rows,
        "commit": git_commit(), "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment(),
    }  # fmt: skip
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def git_commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def cores() -> int:
    from zenspeed.machine import usable_cores

    return usable_cores()


if __name__ == "__main__":
    main()

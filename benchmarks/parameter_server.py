"""Loss against wall time: data parallel and the parameter server's kinds of consistency, on three pairs of workers.

    python benchmarks/parameter_server.py [--seconds 30] [--slow-seconds 60] [--only NAME …] [--draw]

    equal       two workers, a core each
    one slow    one of them is stopped for two thirds of the time, in slices of 30 ms
    slow link   10 Mbit/s and 50 ms each way between the workers; the server stands beside the first (root)

Every run has the same model, data, order and rate (AdamW, constant after its warm-up) and is stopped `--seconds` after both
workers work. Writes benchmarks/results/parameter_server.jsonl and draws docs/parameter-server.svg; --draw only draws. 13 min.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zenspeed.chaos.carry import Link
from zenspeed.chaos.network import Network, network

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "parameter_server.jsonl"
PLACES = ("equal", "one slow", "slow link")
LOCAL = {"consistency": "local", "shares": 2}
METHODS: dict[str, dict[str, Any] | None] = {
    "data parallel": None,
    "synchronous": {"shares": 2},
    "bounded, s = 2": {"consistency": "bounded", "staleness": 2, "shares": 2},
    "local, H = 8": LOCAL | {"local_steps": 8},
    "local, H = 32": LOCAL | {"local_steps": 32},
}
RECIPE = {
    "data.source": "python-docs", "tokenizer.vocab_size": 1024, "model.layers": 2, "model.width": 96, "model.heads": 4,
    "model.context": 128, "train.batch_size": 32, "train.precision": "fp32", "train.compile": False,
    "train.steps": 100_000, "optim.name": "adamw",
    "optim.lr": 3e-3, "optim.schedule": "constant", "optim.warmup": 10, "evaluate.every": 0, "log.tensorboard": False,
    "checkpoint.every": 1_000_000,
}  # fmt: skip
SLICE_SECONDS = 0.03
SLOW_LINK = Link(delay_seconds=0.05, bits_per_second=10e6)


def command(settings: dict[str, Any]) -> list[str]:
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [sys.executable, "-m", "zenspeed", "train", *sets]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


class Field:
    """Two sites where processes can be started: this machine, or two hosts with a link between them."""

    def __init__(self, there: Network | None, folder: Path) -> None:
        self.there, self.folder, self.processes = there, folder, []  # type: Network | None, Path, list[subprocess.Popen[bytes]]
        self.address = "127.0.0.1" if there is None else there.address(0)

    def start(self, site: int, words: list[str], **environment: str) -> subprocess.Popen[bytes]:
        before = [] if self.there is None else ["ip", "netns", "exec", self.there.namespace(site)]
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [*before, *words], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@contextlib.contextmanager
def field(place: str, folder: Path) -> Iterator[Field]:
    with network(2) if place == "slow link" else contextlib.nullcontext() as there:
        if there is not None:
            there.link(1, SLOW_LINK)
        elif place == "slow link":
            raise SystemExit("slow link: needs root and `ip`; leave it out with --only")
        here = Field(there, folder)
        try:
            yield here
        finally:
            here.end()


def start_workers(here: Field, method: dict[str, Any] | None, run: Path) -> list[subprocess.Popen[bytes]]:
    settings = RECIPE | {"run.folder": str(run)}
    port = free_port()
    if method is None:
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": here.address, "MASTER_PORT": str(port)}
        if here.there is not None:
            group |= {"GLOO_SOCKET_IFNAME": here.there.DEVICE, "TP_SOCKET_IFNAME": here.there.DEVICE}
        return [here.start(rank, command(settings), RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in (0, 1)]
    key = here.folder / "key"
    key.write_text(secrets.token_hex(32), encoding="ascii")
    options = ["--listen", f"{here.address}:{port}", "--key-file", str(key), "--folder", str(here.folder / "server")]
    here.start(0, [sys.executable, "-m", "zenspeed", "parameter-server", *options])
    settings |= {"parallel.mode": "parameter_server"} | {f"parallel.server.{k}": v for k, v in method.items()}
    settings |= {"parallel.server.addresses": [f"{here.address}:{port}"], "parallel.server.key_file": str(key)}
    first = here.start(0, command(settings))
    time.sleep(3)  # so that this one leads
    return [first, here.start(1, command(settings))]


def brake(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    """Lets a process run a third of the time."""
    while not ended.wait(SLICE_SECONDS):
        process.send_signal(signal.SIGSTOP)
        ended.wait(2 * SLICE_SECONDS)
        process.send_signal(signal.SIGCONT)


def read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()[:-1] if path.exists() else []
    return [record for line in lines if "lr" in (record := json.loads(line))]


def both_work(records: list[dict[str, Any]], method: dict[str, Any] | None) -> bool:
    """Whether the second worker has come: until then the first had the servers for itself."""
    return bool(records) and (
        method is None or (records[-1]["workers"] == 2 and any("1" in r["waited_seconds"] for r in records))
    )


def measure(place: str, name: str, seconds: float) -> dict[str, Any]:
    method = METHODS[name]
    with tempfile.TemporaryDirectory() as folder, field(place, Path(folder)) as here:
        run, ended = Path(folder) / "run", threading.Event()
        workers = start_workers(here, method, run)
        if place == "one slow":
            threading.Thread(target=brake, args=(workers[1], ended), daemon=True).start()
        until, metrics = time.monotonic() + 120, run / "metrics.jsonl"
        while not both_work(read(metrics), method):
            if time.monotonic() > until or any(p.poll() is not None for p in workers):
                logs = "\n".join(p.read_text(encoding="utf-8")[-2000:] for p in sorted(Path(folder).glob("log-*")))
                raise SystemExit(f"{place}, {name}: no update in two minutes\n{logs}")
            time.sleep(0.1)
        first = read(metrics)[-1]
        time.sleep(seconds)
        records = [r for r in read(metrics) if r["step"] >= first["step"]]
        ended.set()
    curve = [[r["elapsed_seconds"] - first["elapsed_seconds"], r["loss"]] for r in records]
    out = {"place": place, "method": name, "steps": records[-1]["step"] - first["step"], "curve": smooth(curve)}
    out["tokens"] = records[-1]["tokens"] - first["tokens"]
    if method is not None and len(records) > 1:
        out["bytes_per_step"] = sum(r["bytes"] for r in records[1:]) / max(1, out["steps"])
        out["staleness"] = sum(r["staleness"] for r in records) / len(records)
        for worker in sorted({w for r in records for w in r["waited_seconds"]}):
            waited = sum(r["waited_seconds"].get(worker, 0.0) for r in records[1:])
            out[f"waited_{worker}"] = waited / max(1e-9, curve[-1][0])
    return out


def smooth(curve: list[list[float]], points: int = 60) -> list[list[float]]:
    """Means of at most `points` equal stretches."""
    size = max(1, len(curve) // points)
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [[round(sum(c[k] for c in part) / len(part), 4) for k in (0, 1)] for part in parts]


def draw() -> None:
    """The last result of every place and method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "zenspeed"}
    from matplotlib import pyplot

    latest = {(r["place"], r["method"]): r for r in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}
    figure, all_axes = pyplot.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    colors = ("#33415c", "#2a9d8f", "#e9a23b", "#c1121f", "#7b2cbf")
    for axes, place in zip(all_axes, PLACES, strict=True):
        for color, name in zip(colors, METHODS, strict=True):
            if (place, name) in latest:
                axes.plot(*zip(*latest[place, name]["curve"], strict=True), color=color, label=name, linewidth=1.3)
        axes.set(title=place, xlabel="seconds since both workers work")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("training loss (nats per token)")
    all_axes[0].legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "parameter-server.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--slow-seconds", type=float, default=60, help="of each run over the slow link")
    parser.add_argument("--only", nargs="+", choices=[*PLACES, *METHODS], default=[], help="places, methods, or both")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    places, methods = ([name for name in every if name in options.only] or every for every in (PLACES, METHODS))
    for place in places if not options.draw else ():
        for name in methods:
            result = measure(place, name, options.slow_seconds if place == "slow link" else options.seconds)
            print({k: v for k, v in result.items() if k != "curve"}, result["curve"][-1], flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    draw()


if __name__ == "__main__":
    main()

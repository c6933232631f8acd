"""Prepares a text, or trains on a table, several times as large as the memory that the process is given.

    python benchmarks/larger_than_memory.py                                    # 8 GB of text in 2 GiB
    python benchmarks/larger_than_memory.py --gigabytes 3 --duplicates near    # the same, near copies left out
    python benchmarks/larger_than_memory.py --rows --gigabytes 4               # a table of text and label, two steps trained
    python benchmarks/larger_than_memory.py --evaluate --gigabytes 0.5 --limit-mib 1024   # a small model answers such a table

The text is lines of the standard library's source, drawn anew for every document, so that nothing that was met before helps
much; every fiftieth document is a copy of a late one. The limit is a memory cgroup of the system (v1 or v2), which needs root:
it counts the files' pages as well, and a process that needs more is killed. Reported: the highest memory that no file backs,
which is what the process holds; the highest of all; seconds, MB/s. Results go to benchmarks/results/larger_than_memory.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.machine import environment

ROOT = Path(__file__).resolve().parents[1]
CGROUPS = Path("/sys/fs/cgroup")
COPY_EVERY, COPY_WITHIN = 50, 1000
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # scaled: what is freed is not held
SCALED = """
import sys
from zenspeed.data import on_disk, prepare
scale = float(sys.argv.pop(1))
for module, name in (
    (on_disk, "HELD_CHARACTERS"), (prepare, "_TOKENIZER_CHARACTERS"), (prepare, "_CHUNK_CHARACTERS"),
    (prepare, "_SHARD_TOKENS"),
):
    setattr(module, name, int(getattr(module, name) * scale))
from zenspeed.cli import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--duplicates", choices=["keep", "exact", "near"], default="keep")
    parser.add_argument("--rows", action="store_true", help="a table of text and label instead of plain text")
    parser.add_argument("--evaluate", action="store_true", help="a model trained on the first rows answers all of them")
    parser.add_argument("--scale", type=float, default=1.0, help="of what is held at once, for a test with less text")
    parser.add_argument("--tokenizer", choices=["bpe", "char"], default="bpe")
    parser.add_argument("--folder", type=Path, help="where the corpus is written, and deleted again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        record = measure(Path(folder), options)
    print(json.dumps(record, indent=1))
    if record["returncode"]:
        sys.exit(f"ended with {record['returncode']}: {record['said']}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record |= {"commit": commit, "time": time.strftime("%Y-%m-%d %H:%M"), "machine": environment()}
    if options.scale != 1.0:
        return
    with (ROOT / "benchmarks/results/larger_than_memory.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the corpus into `folder` and uses it with as much memory as the limit says."""
    size, limit = int(options.gigabytes * 1e9), options.limit_mib << 20
    rows, duplicates = options.rows or options.evaluate, options.duplicates
    corpus = folder / ("corpus.csv" if rows else "corpus.txt")
    began = time.perf_counter()
    documents = write_corpus(corpus, size, rows)
    print(f"wrote {corpus.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)
    sets = [
        f"data.cache={folder / 'cache'}",
        f"data.clean.duplicates={duplicates}",
        *(TRAIN_ROWS if rows else [f"tokenizer.kind={options.tokenizer}", *PREPARE]),
    ]
    verb = ["train", str(corpus), "--task", "classification"] if rows else ["prepare", "--set", f"data.source={corpus}"]
    sets += [f"run.folder={folder / 'run'}"] if rows else []
    program = ["-m", "zenspeed"] if options.scale == 1.0 else ["-c", SCALED, str(options.scale)]
    command = [sys.executable, *program, *verb, *(part for s in sets for part in ("--set", s))]
    if options.evaluate:
        few = write_corpus(small := folder / "small.csv", 1_000_000, rows)
        subprocess.run([str(small) if part == str(corpus) else part for part in command], check=True, capture_output=True)
        print(f"trained on {few} rows", flush=True)
        command = [sys.executable, *program, "evaluate", str(folder / "run"), "--data", str(corpus)]
    with MemoryLimit(limit, {} if options.scale == 1.0 else GIVE_BACK) as group:
        began = time.perf_counter()
        done = group.run(command)
        seconds = time.perf_counter() - began
        memory = group.figures()
    kind = "evaluation" if options.evaluate else "rows" if rows else "text"
    return {
        "kind": kind, "duplicates": duplicates, "gigabytes": corpus.stat().st_size / 1e9,
        "documents": documents, "limit_mib": limit >> 20, **memory, "seconds": round(seconds, 1),
        "megabytes_per_second": round(corpus.stat().st_size / 1e6 / seconds, 1), "returncode": done.returncode,
        "said": (done.stdout + done.stderr).strip().splitlines()[-6:],
    }  # fmt: skip


PREPARE = ["tokenizer.vocab_size=16384"]
TRAIN_ROWS = [
    "tokenizer.kind=wordpiece", "tokenizer.vocab_size=8192", "model.preset=bert", "model.layers=1", "model.width=64",
    "model.heads=2", "model.context=64", "train.steps=2", "train.batch_size=8", "data.validation=0.001",
    "data.leakage=allow",
]  # fmt: skip


# ---- the corpus


def write_corpus(path: Path, size: int, rows: bool) -> int:
    """Documents of 40 to 400 lines, or rows of 3 to 30, until `size` bytes are there; how many."""
    documents, written, number = drawn(3 if rows else 40, 30 if rows else 400), 0, 0
    with path.open("wb", buffering=1 << 22) as file:
        if rows:
            file.write(b"text,label\n")
        while written < size:
            text, number = next(documents), number + 1
            data = as_row(text, number) if rows else f"{text}\n\n\n".encode()
            written += file.write(data)
    return number


def drawn(least: int, most: int) -> Iterator[str]:
    lines, rng = source_lines(), np.random.default_rng(1)
    late: list[str] = []
    number = 0
    while True:
        number += 1
        if number % COPY_EVERY == 0:
            yield late[int(rng.integers(len(late)))]
            continue
        text = "\n".join(lines[rng.integers(len(lines), size=int(rng.integers(least, most)))].tolist())
        late = [*late[-COPY_WITHIN:], text] if number % 20 == 0 or not late else late
        yield text


def source_lines() -> np.ndarray:
    """(lines,) of str objects: the lines of the standard library's source that hold anything."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
            found += [line for line in text.splitlines() if line.strip()]
    return np.array(found, dtype=object)


def as_row(text: str, number: int) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow([text, "even" if number % 2 == 0 else "odd"])
    return out.getvalue().encode()


# ---- the limit


class MemoryLimit:
    """A memory cgroup of its own, and what was used in it."""

    def __init__(self, limit: int, environment: dict[str, str]) -> None:
        self._v1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
        self.folder = (CGROUPS / "memory" if self._v1 else CGROUPS) / f"zenspeed-{os.getpid()}"
        self._limit, self._environment, self._held, self._all = limit, environment, 0, 0

    def __enter__(self) -> MemoryLimit:
        names = ["memory.limit_in_bytes"] if self._v1 else ["memory.max"]
        try:
            self.folder.mkdir()
            for name in names:
                (self.folder / name).write_text(str(self._limit))
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SystemExit(f"{self.folder}: no memory cgroup can be made here ({error}); run it as root") from None
        return self

    def __exit__(self, *exc: object) -> None:
        self.folder.rmdir()

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        with self._watched():
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
                preexec_fn=lambda: (self.folder / "cgroup.procs").write_text(str(os.getpid())) and None,
            )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.1):
                stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
                self._held = max(self._held, int(stat["total_rss" if self._v1 else "anon"]))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            peak = self.folder / ("memory.max_usage_in_bytes" if self._v1 else "memory.peak")
            self._all = int(peak.read_text()) if peak.exists() else 0

    def figures(self) -> dict[str, float]:
        return {"held_mib": round(self._held / 2**20), "peak_with_files_mib": round(self._all / 2**20)}


if __name__ == "__main__":
    main()

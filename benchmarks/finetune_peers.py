"""Fine-tuning on texts of uneven length, `zenspeed train` beside Hugging Face's Trainer: texts per second, and what is learned.

    python benchmarks/finetune_peers.py bert t5
    python benchmarks/finetune_peers.py bert --rows 512 --epochs 2 --held-out 128 --no-write          smaller

bert        MiniLM (22.7 M weights) learns to tell of which of 16 packages a docstring is: accuracy on the test rows
sentiment   MiniLM on snippets of film reviews, which are of more even length
t5          a T5 of 4 + 4 × 256, drawn at random, learns to shorten descriptions of Debian's packages: held-out loss of a token

All systems begin from the same weights and go through the same texts in batches of as many, for as many epochs, with the same
optimizer, in bf16. zenspeed runs through its front door, without any setting of speed; the Trainer as a user sets it (`hf`:
batches padded to their longest, fused AdamW), with texts of like length together (`hf_grouped`), and that compiled
(`hf_grouped_compile`). All are started, warmed up and stopped; then they take turns, an epoch each, A B C A B C …, one at work
while the others are stopped. A figure is the median epoch, "zenspeed is" the median of the epochs' ratios. In the end the
weights of all are judged on the same rows by the same code, and the difference has a 95 % interval from resampling these rows.

Results go to benchmarks/results/finetune.jsonl, a line a task; `python benchmarks/performance_page.py` makes a table of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from train_speed import HERE, Running, cores, end, end_when_asked, environment_of, git_commit, open_process

if TYPE_CHECKING:
    from zenspeed.evaluate.interval import Measure

CACHE = Path("~/.cache/zenspeed").expanduser()
RESULTS = HERE / "results" / "finetune.jsonl"
SYSTEMS = ("zenspeed", "hf", "hf_grouped", "hf_grouped_compile")
BATCH, SEED = 32, 1
WARM_STEPS = 4
FINISH_SECONDS = 300


class Shape(NamedTuple):
    """One task: where its rows are, how many of them an epoch has, and what its recipe says beside that."""

    data: str
    rows: int
    held_out: int
    recipe: dict[str, Any]


_LABELS: dict[str, Any] = {"task": {"kind": "classification"}, "model": {"huggingface": str(CACHE / "models" / "minilm")}}
_T5: dict[str, Any] = {
    "task": {"kind": "seq2seq", "max_tokens": 256},
    "tokenizer": {"kind": "bpe", "vocab_size": 8192, "or_fewer": True},
    "model": {"preset": "t5", "layers": 4, "width": 256, "heads": 4, "feed_forward": 1024, "context": 256},
    "optim": {"name": "adamw", "lr": 1e-3, "warmup": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.999], "epsilon": 1e-8},
    "decode": {"beams": 1, "max_tokens": 1},  # what the run writes in the end is not looked at
}
SHAPES = {
    "bert": Shape("packages", 1536, 100_000, _LABELS),
    "sentiment": Shape("sentiment-en", 1536, 100_000, _LABELS),
    "t5": Shape("summarize", 1024, 512, _T5),
}


def main() -> None:
    options = parse()
    end_when_asked()
    for name in options.tasks:
        shape, began = SHAPES[name], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zenspeed-finetune-") as folder:
            task = prepare(Path(folder), shape, options)
            said = (
                f"{task['rows']:,} texts of {task['mean_tokens']:.0f} tokens on average, the longest {task['longest_tokens']}"
            )
            print(f"{name}: {said}, {task['epochs']} epochs", flush=True)
            rows = take_turns(Path(folder), task, options.systems)
            judge(Path(folder), rows)
        report(name, task, rows, options, time.monotonic() - began)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=SHAPES)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--rows", type=int, help=f"of an epoch, a multiple of {BATCH}; default: of the task")
    parser.add_argument("--held-out", type=int, help="rows that the weights are judged on; default: of the task")
    parser.add_argument("--epochs", type=int, default=3, help="which are the rounds")
    parser.add_argument("--no-write", action="store_true", help="leaves benchmarks/results alone")
    return parser.parse_args()


# Before ---------------------------------------------------------------------------------------------------------------


def prepare(folder: Path, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Rows, weights and settings that all systems get; in the folder recipe.yaml, model/, train.jsonl and task.json."""
    import yaml

    from zenspeed.config import load
    from zenspeed.export.targets import write_huggingface
    from zenspeed.recipe import Recipe
    from zenspeed.tasks.models import adopt_pretrained
    from zenspeed.tasks.open import open_task

    files = write_rows(folder, shape, options)
    base = shape.recipe | {
        "run": {"folder": str(folder / "zenspeed"), "seed": SEED},
        # Descriptions of packages of one source are nearly the same: no harm where all systems learn from the same rows.
        "data": {"source": str(files["train"]), "validation": str(files["held_out"]), "leakage": "allow"},
        "train": {"epochs": options.epochs, "batch_size": BATCH},
        "evaluate": {"every": 0}, "checkpoint": {"every": 100_000},
    }  # fmt: skip
    start = open_task(adopt_pretrained(load(Recipe, None, base=base), str), None)
    write_huggingface(start.build_model(SEED), start.tokenizer, folder / "model", getattr(start, "labels", []))

    begun = {k: v for k, v in base.items() if k != "tokenizer"} | {"model": {"huggingface": str(folder / "model")}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(begun))
    adopted = adopt_pretrained(load(Recipe, folder / "recipe.yaml"), str)
    examples: Any = open_task(adopted, None).train  # type: ignore[attr-defined]
    with (folder / "train.jsonl").open("w") as file:
        for i in range(len(examples.tokens)):
            target = examples.targets[i] if examples.written is None else examples.written[i][1:]
            file.write(json.dumps({"input_ids": examples.tokens[i].tolist(), "labels": target.tolist()}) + "\n")
    optim, lengths = adopted.optim, examples.lengths
    task = {
        "kind": adopted.task.kind, "seed": SEED, "epochs": options.epochs, "batch": BATCH, "rows": len(examples.tokens),
        "mean_tokens": float(lengths.mean()), "longest_tokens": int(lengths.max()), "clip": adopted.train.clip, "lr": optim.lr,
        "betas": optim.betas, "epsilon": optim.epsilon, "weight_decay": optim.weight_decay, "warmup": optim.warmup,
        "pad_token": start.tokenizer.name(start.padding),  # type: ignore[attr-defined]
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    return task


def write_rows(folder: Path, shape: Shape, options: argparse.Namespace) -> dict[str, Path]:
    """train.jsonl with as many rows as an epoch has, and held_out.jsonl without a text of them."""
    from zenspeed.data.duplicates import normalised

    rng = np.random.default_rng(SEED)
    held_out = drawn(read(shape.data, "test"), options.held_out or shape.held_out, rng)
    seen = {normalised(row["text"]) for row in held_out}
    unique = {normalised(row["text"]): row for row in read(shape.data, "train")}
    rows = [row for text, row in unique.items() if text not in seen]
    count = (options.rows or shape.rows) // BATCH * BATCH
    if len(rows) < count:
        sys.exit(f"{shape.data}: has {len(rows)} rows to train on, not {count}; give --rows")
    files = {"train": folder / "rows.jsonl", "held_out": folder / "held_out.jsonl"}
    for path, part in zip(files.values(), (drawn(rows, count, rng), held_out), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return files


def drawn(rows: list[dict[str, str]], count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    return [rows[i] for i in rng.permutation(len(rows))[:count]]


def read(name: str, part: str) -> list[dict[str, str]]:
    """Rows of a data set that benchmarks/tasks made, which is done here where it was not."""
    folder = CACHE / "tasks" / name
    for needed, there in ((name, folder), ("minilm", CACHE / "models" / "minilm")):
        if not there.exists():
            script = "texts.py" if needed == "summarize" else "fetch.py"
            subprocess.run([sys.executable, str(HERE / "tasks" / script), needed], check=True)
    if (path := folder / f"{part}.jsonl").exists():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with (folder / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Turns ----------------------------------------------------------------------------------------------------------------


def take_turns(folder: Path, task: dict[str, Any], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All systems to their end, an epoch a turn: the figures of each. One that fails is left out, and said."""
    running: dict[str, Running] = {}
    steps = task["rows"] // BATCH

    def attempt(name: str, what: Callable[[Running], object]) -> None:
        try:
            what(running[name])
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
            end(running.pop(name))

    try:
        for name in systems:
            running[name] = start(name, folder)
            attempt(name, warm)
        for epoch in range(1, task["epochs"] + 1):
            for name in list(running):
                attempt(name, lambda system, count=epoch * steps: system.seconds.append(system.until(count)))
            rates = (f"{name} {BATCH / system.seconds[-1]:.1f}" for name, system in running.items())
            print(f"epoch {epoch}, texts/s: {', '.join(rates)}", flush=True)
        rows = {name: figures(system) for name, system in running.items()}
        for name in list(running):
            attempt(name, finish)
        return {name: rows[name] for name in running}
    finally:
        for system in running.values():
            end(system)


def start(system: str, folder: Path) -> Running:
    if system == "zenspeed":
        command, more = [sys.executable, "-m", "zenspeed", "train", str(folder / "recipe.yaml")], {}
    else:
        (folder / system).mkdir()
        command = [environment_of("transformers"), str(HERE / "finetune_hf.py"), system, str(folder)]
        more = {"OMP_NUM_THREADS": str(cores())}
    return Running(system, folder / system, [open_process(command, folder, f"{system}-0", more)], time.time())


def warm(system: Running) -> None:
    system.wait_for(1)
    system.first_step = time.time() - system.started
    system.until(WARM_STEPS)


def finish(system: Running) -> None:
    """Lets it write its weights.

    Raises:
        RuntimeError: it fails, or takes too long.
    """
    system.signal(signal.SIGCONT)
    log = system.folder.parent / f"{system.name}-0.log"
    try:
        if system.processes[0].wait(FINISH_SECONDS) == 0:
            return
    except subprocess.TimeoutExpired:
        pass
    raise RuntimeError(f"{system.name} has not come to its end:\n{log.read_text(errors='replace')[-3000:]}")


def figures(system: Running) -> dict[str, Any]:
    """Of its speed; rates are texts a second."""
    return {
        "texts_per_second": BATCH / statistics.median(system.seconds),
        "slowest": BATCH / max(system.seconds),
        "fastest": BATCH / min(system.seconds),
        "seconds_a_step": system.seconds,
        "first_step_seconds": system.first_step,
        "peak_bytes": system.peak_bytes(),
    }


# After ----------------------------------------------------------------------------------------------------------------


def judge(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """What each has learned, on the held-out rows, and zenspeed's difference from it; added to `rows`."""
    from zenspeed.config import load
    from zenspeed.evaluate.paired import paired
    from zenspeed.models.hf import from_huggingface
    from zenspeed.recipe import Recipe
    from zenspeed.run import open_run
    from zenspeed.tasks.models import adopt_pretrained
    from zenspeed.tasks.open import open_task

    task: Any = open_task(adopt_pretrained(load(Recipe, folder / "recipe.yaml"), str), None)
    measures = {}
    for name in rows:
        model = open_run(folder / name).model if name == "zenspeed" else from_huggingface(folder / name / "model")[0]
        measures[name] = measure(task, model)
    ours = measures.get("zenspeed", next(iter(measures.values())))
    for name, row in rows.items():
        effect = paired(measures[name], ours)
        row |= {"measure": ours.definition, "value": effect.first, "held_out": ours.n}
        row |= {"zenspeed_minus_it": [effect.difference, effect.low, effect.high]}


def measure(task: Any, model: Any) -> Measure:
    """Accuracy, or the loss of a token of the target, in bf16."""
    import torch

    from zenspeed.evaluate.interval import Measure
    from zenspeed.tasks.base import Place
    from zenspeed.tasks.rows import losses_by_document

    place = Place(torch.autocast("cpu", torch.bfloat16))
    if task.recipe.task.kind == "seq2seq":
        sums = task.outputs(model, task.validation, place, (2,), losses_by_document)
        return Measure(sums, lambda s: s[:, 0] / s[:, 1], "loss", higher_is_better=False)
    found = task.probabilities(model, task.validation, place).argmax(1)
    right = (found == task.validation.targets).astype(np.float64)
    return Measure(np.stack([right, np.ones_like(right)], 1), lambda s: s[:, 0] / s[:, 1], "accuracy")


def report(
    name: str, task: dict[str, Any], rows: dict[str, dict[str, Any]], options: argparse.Namespace, seconds: float
) -> None:
    ours = rows.get("zenspeed", next(iter(rows.values())))
    for system, row in rows.items():
        pairs = zip(ours["seconds_a_step"], row["seconds_a_step"], strict=True)
        row["zenspeed_is"] = statistics.median(theirs / mine for mine, theirs in pairs)
        difference, low, high = row["zenspeed_minus_it"]
        print(
            f"{system:20} {row['texts_per_second']:7.1f} texts/s ({row['slowest']:.1f}–{row['fastest']:.1f})  zenspeed is "
            f"{row['zenspeed_is']:.2f} ×  {row['measure']} {row['value']:.4f}, zenspeed − it {difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]  {row['peak_bytes'] / 2**20:,.0f} MiB"
        )
    print(f"{name}: {seconds / 60:.1f} minutes", flush=True)
    if options.no_write:
        return
    from zenspeed.machine import environment

    record = {
        "name": name, "task": task, "systems": rows, "commit": git_commit(), "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": environment(),
    }  # fmt: skip
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

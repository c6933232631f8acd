"""Reading, cleaning, tokenizing and batching, beside Hugging Face's `datasets` and `tokenizers`, in interleaved rounds.

    python benchmarks/data.py                       # rows made of Python's own documentation
    python benchmarks/data.py --csv reviews.csv     # columns text, label
    python benchmarks/data.py --train sources.txt   # only: a tokenizer trained on this text, beside that of `tokenizers`

Both sides do the same work on the same rows and the same vocabulary (byte-level BPE of 16,384 tokens, fewer for little text);
the token numbers are compared, all of them. A round runs every stage once on each side, in turn; the figure is the median of
the rounds. Also: training the tokenizer, and how long a training step of the demo recipe waits for its batch. Results go to
benchmarks/results/data.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.data.python_docs import python_docs
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.text.bpe import train_bpe, train_bpe_by_tokenizers
from zenspeed.text.clean import Cleaner
from zenspeed.text.clean_config import CleanConfig
from zenspeed.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE, BATCH, LONGEST = 16_384, 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="rows with the columns text and label; default: Python's documentation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=Path, help="plain text; default for `-`: the source code of the standard library")
    options = parser.parse_args()
    if options.train:
        return record(training(options.train))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = options.csv or documentation(work / "rows.csv")
        result = {"data": path.name, "rounds": options.rounds, **measure(path, work, options.rounds)}
        result["loader"] = loader_wait(work)
    return record(result)


def record(result: dict[str, Any]) -> None:
    line = json.dumps({**result, **machine()})
    with (ROOT / "benchmarks" / "results" / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


def training(path: Path) -> dict[str, Any]:
    """Seconds and MB/s of training VOCAB_SIZE tokens, by us and by `tokenizers`; the two are equal to the letter."""
    if str(path) == "-":
        files = [p for p in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py") if "site-packages" not in p.parts]
        texts = [p.read_text(encoding="utf-8", errors="replace") for p in sorted(files)]
    else:
        whole = path.read_text(encoding="utf-8")
        texts = [whole[i : i + 10_000] for i in range(0, len(whole), 10_000)]
    size, seconds = sum(len(t.encode()) for t in texts) / 1e6, []
    tokens = [(began := time.perf_counter(), train_bpe(texts, VOCAB_SIZE, ["<|endoftext|>"]).to_str())]
    seconds.append(time.perf_counter() - began)
    tokens.append((began := time.perf_counter(), train_bpe_by_tokenizers(texts, VOCAB_SIZE, ["<|endoftext|>"]).to_str()))
    seconds.append(time.perf_counter() - began)
    assert tokens[0][1] == tokens[1][1], "merges differ"
    rate = {name: size / s for name, s in zip(("zenspeed", "tokenizers"), seconds, strict=True)}
    return {"train_tokenizer": path.name, "megabytes": size, "megabytes_per_second": rate}


def documentation(path: Path) -> Path:
    """Python's documentation as rows: its paragraphs."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for document in python_docs():
            writer.writerows([part, len(part) % 2] for part in re.split(r"\n\s*\n", document) if part.strip())
    return path


def measure(path: Path, work: Path, rounds: int) -> dict[str, Any]:
    rows = list(read_rows(str(path), RowOptions(on_bad_row="skip")))
    texts = [str(row["text"]) for row in rows]
    size = sum(len(text.encode()) for text in texts) / 1e6
    began = time.perf_counter()
    tokenizer = Tokenizer.train("bpe", texts, VOCAB_SIZE if size > 5 else None)
    training = time.perf_counter() - began
    tokenizer.save(work / "tokenizer")
    pairs = stages(path, work, tokenizer, texts)
    seconds: dict[str, dict[str, list[float]]] = {name: {"zenspeed": [], "hugging_face": []} for name in pairs}
    for round_ in range(rounds):
        for name, sides in pairs.items():
            for side in sorted(sides, reverse=round_ % 2 == 1):
                began = time.perf_counter()
                sides[side]()
                seconds[name][side].append(time.perf_counter() - began)
    figures = {
        name: {side: rates(statistics.median(values), len(texts), size) for side, values in sides.items()}
        for name, sides in seconds.items()
    }
    for name, sides in figures.items():
        print(name, json.dumps(sides), flush=True)
    trained = {"megabytes_per_second": round(size / training, 2), "vocab_size": tokenizer.vocab_size}
    return {"texts": len(texts), "megabytes": round(size, 2), "train_tokenizer": trained, "stages": figures}


def rates(seconds: float, texts: int, megabytes: float) -> dict[str, float]:
    return {"texts_per_second": round(texts / seconds), "megabytes_per_second": round(megabytes / seconds, 2)}


def stages(path: Path, work: Path, tokenizer: Tokenizer, texts: list[str]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Each stage on both sides, after a check that both give the same."""
    import datasets
    import tokenizers
    import torch

    from zenspeed.data.packing import fill, pad

    datasets.disable_progress_bars()
    datasets.disable_caching()
    theirs = tokenizers.Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    theirs.encode_special_tokens = True
    held = datasets.Dataset.from_dict({"text": texts})
    order = np.random.default_rng(0).permutation(len(texts))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    ids = [ids[:LONGEST] for ids in tokenizer.encode_batch(texts)]
    encoded = datasets.Dataset.from_dict({"ids": [i.tolist() for i in ids]})
    reference = [e.ids for e in theirs.encode_batch_fast(texts, add_special_tokens=False)]
    assert [i.tolist() for i in tokenizer.encode_batch(texts)] == reference, "token numbers differ"

    def read_theirs() -> None:
        with tempfile.TemporaryDirectory(dir=work) as cache:
            table = datasets.load_dataset("csv", data_files=str(path), split="train", cache_dir=cache)
            assert sum(1 for _ in table) == len(texts)

    def clean(text: str) -> str:
        return unicodedata.normalize("NFKC", text).lower()

    cleaner = Cleaner(CleanConfig(unicode="NFKC", lowercase=True))
    assert [cleaner(t) for t in texts[:1000]] == [clean(t) for t in texts[:1000]]

    def batch_ours() -> None:
        for indices in batches:
            chosen = [ids[i] for i in indices]
            fill(pad([len(c) for c in chosen]), chosen, 0)

    def batch_theirs() -> None:
        for indices in batches:
            chosen = encoded[indices.tolist()]["ids"]
            width = max(map(len, chosen))
            torch.tensor([c + [0] * (width - len(c)) for c in chosen])

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in theirs.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    return {
        "read": {"zenspeed": lambda: list(read_rows(str(path), RowOptions(on_bad_row="skip"))), "hugging_face": read_theirs},
        "clean": {
            "zenspeed": lambda: [cleaner(t) for t in texts],
            "hugging_face": lambda: held.map(lambda b: {"text": [clean(t) for t in b["text"]]}, batched=True),
        },
        "tokenize": {
            "zenspeed": lambda: tokenizer.encode_batch(texts),
            "hugging_face": lambda: theirs.encode_batch_fast(texts, add_special_tokens=False),
        },
        "tokenize_map": {
            "zenspeed": lambda: tokenizer.encode_batch(texts),
            "hugging_face": lambda: held.map(encode, batched=True),
        },
        "batch": {"zenspeed": batch_ours, "hugging_face": batch_theirs},
    }


def loader_wait(work: Path, steps: int = 20) -> dict[str, float]:
    """How long the demo recipe's step waits for its batch, and the share of the step that this is."""
    from zenspeed.config import load
    from zenspeed.data.loader import Loader
    from zenspeed.data.prepare import prepare
    from zenspeed.recipe import Recipe

    values = [f"data.cache={work / 'cache'}", f"run.folder={work / 'run'}", f"train.steps={steps}", "evaluate.every=0"]
    recipe = load(Recipe, ROOT / "recipes" / "demo.yaml", values)
    prepared = prepare(recipe)
    end = prepared.tokenizer.end_of_text
    loader = Loader(prepared.train, recipe.model.context, recipe.run.seed, recipe.data.attend_across_documents, end)
    waits = []
    for step in range(200):
        began = time.perf_counter()
        loader.batch(step * recipe.train.batch_size, recipe.train.batch_size)
        waits.append(time.perf_counter() - began)
    command = [sys.executable, "-m", "zenspeed", "train", str(ROOT / "recipes" / "demo.yaml")]
    command += [part for value in values for part in ("--set", value)]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    rates_seen = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][5:]
    step_seconds = recipe.train.batch_size * recipe.model.context / statistics.median(rates_seen)
    wait = statistics.median(waits)
    return {"wait_milliseconds": wait * 1e3, "step_milliseconds": step_seconds * 1e3, "share": wait / step_seconds}


def machine() -> dict[str, object]:
    from zenspeed.machine import processor_name, usable_cores

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "machine": f"{processor_name()}, {usable_cores()} cores", "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"), "commit": commit,
    }  # fmt: skip


if __name__ == "__main__":
    main()

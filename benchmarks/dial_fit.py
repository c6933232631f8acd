"""The small runs that the laws of `zenspeed/dial` are fitted on: bits per byte by shape, text, tokens and regularization.

    python benchmarks/dial_fit.py --language en --keep 8 width=128 layers=4 vocab=1024 tokens=1e6 dropout=0.1 [: width=192 …]

Each point (points are separated by a colon) is one run of so many tokens on one thread; what was run before is not run again.
Results go to benchmarks/results/dial_fit.jsonl. `--keep 8` trains on an eighth of the documents; the held-out text is
always the same, one document in twenty. Time plays no part in a result, so that a shared machine does no harm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dial_fit.jsonl"
CORPORA = Path("~/.cache/zenspeed/benchmarks/dial").expanduser()
REVIEWS = Path("~/.cache/zenspeed/tasks/sentiment-zh/unlabelled.jsonl").expanduser()
HELD_OUT = 20  # one document in so many

POINT: dict[str, Any] = {
    "vocab": 4096, "layers": 6, "width": 256, "context": 256, "batch": 2048, "ngrams": "23", "rows": 16384, "dropout": 0.0,
    "ngram_dropout": 0.0, "decay": 0.0, "lr": 0.02, "adam_lr": 4e-3, "ngram_lr": 0.05, "tokens": 500_000.0,
    "schedule": "linear", "wsd": 0.4, "preset": "gpt", "tie": 0, "head": 64, "across": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    parser.add_argument("--keep", type=int, default=1, help="train on one document in so many")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
    points: list[list[str]] = [[]]
    for word in options.settings:
        points.append([]) if word == ":" else points[-1].append(word)
    for words in points:
        changes = dict(word.split("=", 1) for word in words)
        assert set(changes) <= set(POINT), f"keys: {', '.join(POINT)}"
        point = POINT | {k: type(POINT[k])(v) if not isinstance(POINT[k], int) else int(float(v)) for k, v in changes.items()}
        print(json.dumps(run(options.language, options.keep, point)), flush=True)


def corpus(language: str, keep: int) -> tuple[Path, Path]:
    """Files of the documents to train on and of those held out."""
    train, held_out = CORPORA / f"{language}-{keep}.jsonl", CORPORA / f"{language}-held-out.jsonl"
    if train.exists() and held_out.exists():
        return train, held_out
    CORPORA.mkdir(parents=True, exist_ok=True)
    if language == "en":
        from zenspeed.data.python_docs import python_docs

        texts = list(python_docs())
    else:
        texts = [json.loads(line)["text"] for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    for path, chosen in (
        (train, lambda n: n % HELD_OUT and (n // HELD_OUT) % keep == 0),
        (held_out, lambda n: n % HELD_OUT == 0),
    ):
        number = lambda text: int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)  # noqa: E731
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts if chosen(number(text))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return train, held_out


def run(language: str, keep: int, point: dict[str, Any]) -> dict[str, Any]:
    key = {"language": language, "keep": keep, **point}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
        if (row := json.loads(line)) and all(row.get(name) == value for name, value in key.items()):
            return row
    import zenspeed
    from zenspeed.display import Display
    from zenspeed.recipe import Recipe

    train, held_out = corpus(language, keep)
    context, batch = point["context"], max(1, point["batch"] // point["context"])
    optim = {name: point[name] for name in ("lr", "adam_lr", "ngram_lr")} | {"weight_decay": point["decay"]}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.model_validate({
            "data": {"source": str(train), "validation": str(held_out), "attend_across_documents": bool(point["across"])},
            "tokenizer": {"kind": "bpe", "vocab_size": point["vocab"]} if point["vocab"] else {"kind": "char"},
            "model": {
                "preset": point["preset"], "layers": point["layers"], "width": point["width"], "context": context,
                "heads": max(1, point["width"] // point["head"]), "dropout": point["dropout"],
                "ngrams": [int(n) for n in point["ngrams"]], "ngram_rows": point["rows"], "tie_embeddings": bool(point["tie"]),
                "ngram_dropout": point["ngram_dropout"],
            },
            "train": {"steps": max(1, round(point["tokens"] / (context * batch))), "batch_size": batch},
            "optim": {**optim, "schedule": point["schedule"], "decay": point["wsd"]},
            "run": {"folder": folder + "/run"}, "evaluate": {"every": 0}, "sample": {"max_tokens": 1},
            "log": {"tensorboard": False}, "checkpoint": {"every": 10**9},
        })  # fmt: skip
        before = time.process_time()
        zenspeed.train(recipe, display=Display(enabled=False))
        spent = time.process_time() - before
        records = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    last, steps = records[-1], [r for r in records if "loss" in r]
    row = key | {
        "bits_per_byte": last["validation_bits_per_byte"], "loss": last["validation_loss"], "steps": last["step"],
        "train_loss": statistics.mean(r["loss"] for r in steps[-max(5, len(steps) // 20) :]), "cpu_seconds": round(spent, 1),
        "tokens_per_second": statistics.median(r["tokens_per_second"] for r in steps),
    }  # fmt: skip
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


if __name__ == "__main__":
    main()

"""Evaluation beside Hugging Face's Trainer, in texts per second for the same model; and a million predictions scored.

    python benchmarks/evaluation.py                     both, on paragraphs of Python's documentation
    python benchmarks/evaluation.py --part million

MiniLM (22.7 M weights, benchmarks/tasks/fetch.py) with a head of two labels judges paragraphs of very uneven length, cut to 256
tokens, in bf16. The Trainer is set as users set it: batches of 32, padded to their longest. It is given token numbers;
zenspeed's time includes the tokenizer. The two take turns and give the same answers (checked).
Results go to benchmarks/results/evaluation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "tasks"))

from fetch import minilm  # noqa: E402

from zenspeed.data.python_docs import python_docs  # noqa: E402
from zenspeed.evaluate.score import Options, score_file  # noqa: E402
from zenspeed.machine import environment, keep_memory  # noqa: E402
from zenspeed.models.auto import load_pretrained  # noqa: E402
from zenspeed.models.hf import to_huggingface  # noqa: E402
from zenspeed.tasks.opening import open_for_evaluation  # noqa: E402
from zenspeed.text.tokenizer import Tokenizer  # noqa: E402

LONGEST = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["model", "million", "both"], default="both")
    parser.add_argument("--texts", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {}
        if options.part != "million":
            found |= beside_trainer(Path(name), options.texts, options.rounds)
        if options.part != "model":
            found |= a_million(Path(name))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record = {"commit": commit, "when": time.strftime("%Y-%m-%d"), "environment": environment(), **found}
    path = ROOT / "benchmarks" / "results" / "evaluation.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def beside_trainer(folder: Path, num_texts: int, rounds: int) -> dict[str, Any]:
    weights = folder / "model"
    to_huggingface(load_pretrained(minilm(), "label", 2, seed=1).model, weights, label_names=["odd", "even"])
    Tokenizer.load(minilm()).save(weights)
    paragraphs = [p.strip() for text in python_docs() for p in text.split("\n\n") if len(p.strip()) > 20]
    chosen = random.Random(1).sample(paragraphs, num_texts)
    rows = [{"text": text, "label": "even" if i % 2 else "odd"} for i, text in enumerate(chosen)]
    ways = {"zenspeed": ours(weights, rows), "trainer": theirs(weights, rows, folder)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, np.ndarray] = {}
    for _ in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - start)
    alike = float((answers["zenspeed"].argmax(1) == answers["trainer"].argmax(1)).mean())
    rates = {name: num_texts / statistics.median(times[1:]) for name, times in seconds.items()}
    lengths = [len(t) for t in Tokenizer.load(weights).encode_batch(chosen)]
    print(f"{num_texts} texts, mean {np.mean(np.minimum(lengths, LONGEST)):.0f} tokens; the same answer for {alike:.1%}")
    for name, rate in rates.items():
        print(f"{name:10} {rate:8.1f} texts/s  ({', '.join(f'{num_texts / s:.1f}' for s in seconds[name][1:])})")
    print(f"{rates['zenspeed'] / rates['trainer']:.2f} ×")
    assert alike > 0.97, "bf16 in another order may turn answers of a head that knows nothing, but not many"
    return {"texts_per_second": rates, "same_answers": alike, "mean_tokens": float(np.mean(np.minimum(lengths, LONGEST)))}


def ours(weights: Path, rows: list[dict[str, Any]]) -> Callable[[], np.ndarray]:
    sets = ["task.max_tokens=256", "train.precision=bf16"]
    model = open_for_evaluation(weights, sets=sets)
    task = model.task()
    assert task is not None

    def run() -> np.ndarray:
        answers = task.predict(model.model, rows, model.place())
        task.score(answers)
        return np.array([[a["scores"]["odd"], a["scores"]["even"]] for a in answers])

    return run


def theirs(weights: Path, rows: list[dict[str, Any]], folder: Path) -> Callable[[], np.ndarray]:
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    data = [
        {**tokenizer(row["text"], truncation=True, max_length=LONGEST), "label": int(row["label"] == "even")} for row in rows
    ]
    kept: dict[str, np.ndarray] = {}

    def metrics(prediction: Any) -> dict[str, float]:
        kept["logits"] = prediction.predictions
        said = prediction.predictions.argmax(1)
        truth = prediction.label_ids
        return {"accuracy": accuracy_score(truth, said), "f1": f1_score(truth, said)}

    arguments = TrainingArguments(
        str(folder / "trainer"), per_device_eval_batch_size=32, bf16=True, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(weights), args=arguments, eval_dataset=data,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=metrics,
    )  # fmt: skip

    def run() -> np.ndarray:
        trainer.evaluate()
        return kept["logits"]

    return run


def a_million(folder: Path) -> dict[str, Any]:
    path, rng = folder / "million.jsonl", random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for i in range(1_000_000):
            p = rng.random()
            row = {
                "id": i, "label": "yes" if rng.random() < p else "no", "prediction": "yes" if p > 0.5 else "no",
                "scores": {"no": round(1 - p, 6), "yes": round(p, 6)},
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    start = time.perf_counter()
    found = score_file(path, Options())
    seconds = time.perf_counter() - start
    print(f"a million predictions with scores: {len(found['figures'])} figures in {seconds:.1f} s")
    return {"million_seconds": seconds}


if __name__ == "__main__":
    main()

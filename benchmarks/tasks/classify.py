"""Accuracy (or macro F1) of the shipped recipes for labels beside their baselines, on the same test rows.

    python benchmarks/tasks/classify.py sentiment-en               all that is missing, then the comparison
    python benchmarks/tasks/classify.py sentiment-en --only trainer --seeds 2
    python benchmarks/tasks/classify.py topics-en --rows 100       learn from so many rows alone: a point of the learning curve

Every system answers the test rows once a seed; its answers are kept in ~/.cache/zenspeed/tasks/NAME/answers, so that a run that
was stopped goes on. What is chosen (rates, epochs, the baseline's C and n-grams) is chosen on training rows alone. A figure is
the mean over the seeds; its difference from a baseline has a 95 % interval from resampling test rows, the same rows for both.
Results go to benchmarks/results/tasks.jsonl, from which docs/make_tasks.py makes the table of docs/tasks.md.

tfidf      n-grams of words (Chinese: of characters), logistic regression; C and n-grams by 5-fold cross-validation
trainer    transformers' Trainer from the same checkpoint, on the same rows, with the same epochs, batch, rate and warm-up
scratch    the same recipe without the pretrained weights
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fetch import CACHE, MACHINE, RESULTS, ROOT, SETS, finish

from zenspeed.config import load
from zenspeed.recipe import Recipe

RESAMPLES, RESAMPLE_SEED = 2000, 0


class Case(NamedTuple):
    """One data set: its recipe, its metric, and the systems ours is compared with."""

    metric: str
    baselines: tuple[str, ...]
    pretrain: str | None = None
    analyzer: str = "word"
    rows: int | None = None  # to train on; None: all


CASES = {
    "sentiment-en": Case("accuracy", ("tfidf", "trainer")),
    "sentiment-three": Case("macro_f1", ("tfidf", "trainer")),
    "topics-en": Case("accuracy", ("tfidf", "trainer")),
    "sentiment-zh": Case("accuracy", ("tfidf", "scratch"), pretrain="pretrain-zh", analyzer="char"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, help="rows to train on, drawn by the seed; default: all")
    parser.add_argument("--only", choices=[*SYSTEMS], help="run this system and compare nothing")
    parser.add_argument("--baselines", nargs="+", choices=[*SYSTEMS], help="these alone; default: all of the task")
    options = parser.parse_args()
    name, case = options.task, CASES[options.task]
    case = case._replace(baselines=tuple(options.baselines or case.baselines), rows=options.rows)
    folder = CACHE / "tasks" / name
    for needed, there in ((name, folder / "test.csv"), ("minilm", CACHE / "models" / "minilm")):
        if not there.exists():
            SETS[needed]()
    systems = [options.only] if options.only else ["zenspeed", *case.baselines]
    found = {
        system: [answers(name, case, system, seed) for seed in seeds_of(system, options.seeds, case)] for system in systems
    }
    if not options.only:
        report(name, case, read(folder / "test.csv"), found, options.seeds)


def seeds_of(system: str, seeds: Sequence[int], case: Case) -> list[int]:
    return [0] if system == "tfidf" and not case.rows else list(seeds)  # it has no randomness but in the rows


def marked(name: str, case: Case) -> str:
    return f"{name}-{case.rows}" if case.rows else name


def train_rows(name: str, case: Case, seed: int) -> Path:
    """The training rows, or `case.rows` of them drawn by the seed: the same for every system."""
    whole = CACHE / "tasks" / name / "train.csv"
    if not case.rows:
        return whole
    path = whole.with_name(f"train-{case.rows}-{seed}.csv")
    if not path.exists():
        rows = read(whole)
        chosen = np.random.default_rng(seed).permutation(len(rows))[: case.rows]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows[i] for i in sorted(chosen))
    return path


def answers(name: str, case: Case, system: str, seed: int) -> list[str]:
    """The label that `system` gives to each test row."""
    folder = CACHE / "tasks" / name
    path = folder / "answers" / f"{marked(system, case)}-{seed}.json"
    if not path.exists():
        start = time.perf_counter()
        labels = SYSTEMS[system](name, case, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(labels, ensure_ascii=False))
        truth = [row["label"] for row in read(folder / "test.csv")]
        value = METRICS[case.metric](np.array(truth), np.array(labels), None)
        print(
            f"{marked(name, case)} {system} seed {seed}: {case.metric} {value:.4f} in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    loaded: list[str] = json.loads(path.read_text())
    return loaded


# Systems ---------------------------------------------------------------------------------------------------------------


def zenspeed(name: str, case: Case, seed: int, scratch: bool = False) -> list[str]:
    from zenspeed.run import open_run

    runs = CACHE / "tasks" / name / "runs"
    more: list[str] = []
    if case.pretrain:
        pretrained = runs / case.pretrain
        if not (pretrained / "report.md").exists():
            finish(load(Recipe, ROOT / "recipes" / f"{case.pretrain}.yaml", [f"run.folder={pretrained}"]))
        more = [f"model.from_run={pretrained}"]
    folder = runs / f"{marked('scratch' if scratch else 'zenspeed', case)}-{seed}"
    if case.rows:  # few rows are gone through more often, for at least sixty updates
        more += [f"data.source={train_rows(name, case, seed)}", f"train.epochs={max(3, -(-60 * 32 // case.rows))}"]
    sets = [f"run.folder={folder}", f"run.seed={seed}", "evaluate.every=0", *more]
    recipe = load(Recipe, ROOT / "recipes" / f"{name}.yaml", sets)
    if scratch:
        recipe = without_weights(recipe, open_run(pretrained).recipe)
    finish(recipe)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def without_weights(recipe: Recipe, pretrained: Recipe) -> Recipe:
    """The same model and tokenizer, drawn at random, with the optimizer that models from nothing take."""
    model = pretrained.model.model_copy(update={"dropout": recipe.model.dropout})
    return recipe.model_copy(update={"model": model, "tokenizer": pretrained.tokenizer})


def tfidf(name: str, case: Case, seed: int) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    train, test = read(train_rows(name, case, seed)), read(CACHE / "tasks" / name / "test.csv")
    steps = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, analyzer=case.analyzer), LogisticRegression(max_iter=2000, solver="liblinear")
    )
    if len({row["label"] for row in train}) > 2:
        steps.steps[-1] = ("logisticregression", LogisticRegression(max_iter=2000))
    grid = {
        "tfidfvectorizer__ngram_range": [(1, 1), (1, 2)] if case.analyzer == "word" else [(1, 2), (1, 3)],
        "logisticregression__C": [1, 3, 10, 30],
    }
    scoring = {"accuracy": "accuracy", "macro_f1": "f1_macro"}[case.metric]
    search = GridSearchCV(steps, grid, cv=5, scoring=scoring).fit([r["text"] for r in train], [r["label"] for r in train])
    print(f"tfidf: {search.best_params_}")
    return [str(label) for label in search.predict([r["text"] for r in test])]


def trainer(name: str, case: Case, seed: int) -> list[str]:
    """What a user of transformers would write: dynamic padding, texts of like length together, fp32."""
    import torch
    import transformers as hf

    from zenspeed.tasks.data import open_rows
    from zenspeed.tasks.models import adopt_pretrained

    recipe = adopt_pretrained(load(Recipe, ROOT / "recipes" / f"{name}.yaml"), print)
    data, source = open_rows(recipe, None), recipe.model.huggingface
    assert data.test is not None and source is not None and recipe.train.epochs is not None
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    longest = min(recipe.task.max_tokens or 256, recipe.model.context)

    def encoded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=longest)["input_ids"]
        return [{"input_ids": t, "labels": data.labels.index(row["label"])} for t, row in zip(texts, rows, strict=True)]

    hf.set_seed(seed)
    model = hf.AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(data.labels))
    with tempfile.TemporaryDirectory() as folder:
        arguments = hf.TrainingArguments(
            folder, seed=seed, use_cpu=True, num_train_epochs=recipe.train.epochs, learning_rate=recipe.optim.lr,
            per_device_train_batch_size=recipe.train.batch_size, per_device_eval_batch_size=64, report_to=[],
            warmup_steps=recipe.optim.warmup, weight_decay=recipe.optim.weight_decay, save_strategy="no",
            train_sampling_strategy="group_by_length", disable_tqdm=True,
        )  # fmt: skip
        run = hf.Trainer(model, arguments, train_dataset=encoded(data.train), processing_class=tokenizer)
        run.train()
        run.args.train_sampling_strategy = "random"  # else `predict` gives the answers in the order of lengths
        logits = run.predict(encoded(data.test)).predictions
    return [data.labels[i] for i in torch.from_numpy(logits).argmax(1).tolist()]


SYSTEMS: dict[str, Callable[[str, Case, int], list[str]]] = {
    "zenspeed": zenspeed,
    "tfidf": tfidf,
    "trainer": trainer,
    "scratch": lambda name, case, seed: zenspeed(name, case, seed, scratch=True),
}


# Comparison ------------------------------------------------------------------------------------------------------------


def accuracy(truth: np.ndarray, said: np.ndarray, weights: np.ndarray | None) -> float:
    return float(np.average(truth == said, weights=weights))


def macro_f1(truth: np.ndarray, said: np.ndarray, weights: np.ndarray | None) -> float:
    w = np.ones(len(truth)) if weights is None else weights
    scores = []
    for label in np.unique(truth):
        both = w[(truth == label) & (said == label)].sum()
        scores.append(2 * both / max(1e-12, w[truth == label].sum() + w[said == label].sum()))
    return float(np.mean(scores))


METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}


def report(name: str, case: Case, test: list[dict[str, str]], found: dict[str, list[list[str]]], seeds: list[int]) -> None:
    """Figures and differences, printed and appended to the results."""
    metric, truth = METRICS[case.metric], np.array([row["label"] for row in test])
    said = {system: [np.array(labels) for labels in runs] for system, runs in found.items()}
    drawn = [np.bincount(r, minlength=len(truth)).astype(float) for r in resamples(len(truth))]

    def mean(system: str, weights: np.ndarray | None) -> float:
        return float(np.mean([metric(truth, labels, weights) for labels in said[system]]))

    values = {system: [metric(truth, labels, None) for labels in runs] for system, runs in said.items()}
    record: dict[str, Any] = {
        "task": name, "rows": case.rows, "metric": case.metric, "n": len(truth), "seeds": seeds, "machine": MACHINE,
        "command": f"python benchmarks/tasks/classify.py {name}" + (f" --seeds {' '.join(map(str, seeds))}" * (len(seeds) < 3))
        + (f" --rows {case.rows}" if case.rows else ""),
        "systems": {system: {"values": [round(v, 4) for v in of], "mean": float(np.mean(of))} for system, of in values.items()},
        "differences": {},
    }  # fmt: skip
    ours = [mean("zenspeed", w) for w in drawn]
    for system in case.baselines:
        differences = np.array(ours) - [mean(system, w) for w in drawn]
        low, high = np.quantile(differences, [0.025, 0.975])
        value = record["systems"]["zenspeed"]["mean"] - record["systems"][system]["mean"]
        record["differences"][system] = {"value": value, "low": float(low), "high": float(high)}
        print(f"{name}: zenspeed − {system}: {value:+.4f} [{low:+.4f}, {high:+.4f}] ({case.metric}, {len(truth)} rows)")
    print(json.dumps(record["systems"]))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def resamples(n: int) -> np.ndarray:
    return np.random.default_rng(RESAMPLE_SEED).integers(n, size=(RESAMPLES, n))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()

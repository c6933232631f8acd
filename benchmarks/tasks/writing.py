"""The recipes that write text beside their baselines, on the same test rows.

    python benchmarks/tasks/writing.py translate --seeds 1 2 3 --minutes 8
    python benchmarks/tasks/writing.py generate-en

What is written is kept in ~/.cache/zenspeed/tasks/NAME/runs, so that a run that was stopped goes on. A figure is the mean over
the seeds; its difference from a baseline has a 95 % interval from resampling test rows, the same rows for both. Nothing is
chosen on test rows. Results go to benchmarks/results/tasks.jsonl.

translate      translation memory: the target of the training row whose text is nearest (TF-IDF of character 1- to 4-grams)
summarize      lead-1: the first sentence of the text
dialogue       the same model before it was tuned on answers, under the same template
generate-en    a 5-gram model of the same tokens (interpolated Kneser-Ney), and xz behind the training text
generate-zh    the same
spans          the summarizer from random weights, at as many steps
masked         the classifier from random weights, at as many steps
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fetch import CACHE, MACHINE, RESULTS, ROOT, finish
from kneser_ney import KneserNey
from texts import SETS

from zenspeed.config import load
from zenspeed.evaluate.interval import Measure
from zenspeed.evaluate.written import length_figures, written_measures
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe
from zenspeed.run import begun

RESAMPLES, SEED = 1000, 0

Row = dict[str, Any]


class Options(NamedTuple):
    seeds: list[int]
    minutes: float
    sets: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--set", action="append", default=[], help="changes the recipe")
    chosen = parser.parse_args()
    TASKS[chosen.task](chosen.task, Options(chosen.seeds, chosen.minutes, chosen.set))


def run(name: str, recipe: str, seed: int, options: Options, *more: str) -> Path:
    """The folder of a finished run of a recipe with `seed`, trained if it is not there."""
    folder = CACHE / "tasks" / name / "runs" / f"{recipe}-{seed}"
    if not (folder / "report.md").exists():
        sets = [
            f"run.folder={folder}", f"run.seed={seed}", "evaluate.every=0", "train.epochs=null",
            f"train.minutes={options.minutes}", *more, *options.sets,
        ]  # fmt: skip
        begin = begun(folder, sets)
        finish(begin.recipe if begin else load(Recipe, ROOT / "recipes" / f"{recipe}.yaml", sets), begin and begin.checkpoint)
    return folder


def data(name: str) -> Path:
    folder = CACHE / "tasks" / name
    if not (folder / "train.jsonl").exists():
        SETS[name]()
    return folder


def sources(name: str) -> list[str]:
    folder, parts = data(name), {"source": "train", "validation": "validation", "test": "test"}
    return [*(f"data.{key}={folder / part}.jsonl" for key, part in parts.items()), "data.leakage=allow"]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Texts against references -----------------------------------------------------------------------------------------------


def translate(name: str, options: Options) -> None:
    folder = data(name)
    ours = [read(run(name, name, s, options, *sources(name)) / "predictions.jsonl") for s in options.seeds]
    test = read(folder / "test.jsonl")
    for to in ("en", "zh"):
        memory = nearest([r for r in read(folder / "train.jsonl") if r["to"] == to], [r for r in test if r["to"] == to])
        for metric in ("chrf", "bleu"):
            systems = {
                "zenspeed": [[r["prediction"] for r in rows if r["to"] == to] for rows in ours],
                "translation memory": [memory],
            }
            texts(f"{name} to {to}", metric, [r["target"] for r in test if r["to"] == to], systems, options, name)


def nearest(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True)
    known = vectors.fit_transform([row["text"] for row in train])
    best = (vectors.transform([row["text"] for row in test]) @ known.T).argmax(axis=1)
    return [train[i]["target"] for i in np.asarray(best).ravel()]


def summarize(name: str, options: Options) -> None:
    folder = data(name)
    runs = [run(name, name, s, options, *sources(name)) for s in options.seeds]
    ours, test = [read(r / "predictions.jsonl") for r in runs], read(folder / "test.jsonl")
    lead = [re.split(r"(?<=[.!?])\s", row["text"], maxsplit=1)[0] for row in test]
    systems = {"zenspeed": [[r["prediction"] for r in rows] for rows in ours], "lead-1": [lead]}
    kept = [length_figures((r["asked_words"], r["prediction"]) for r in rows) for rows in ours]
    more = {key: [getattr(figures[key], "value", None) for figures in kept] for key in ("length_error", "length_kept")}
    texts(name, "rougeL", [row["target"] for row in test], systems, options, name, more)


def texts(
    task: str,
    metric: str,
    references: Sequence[str],
    systems: dict[str, list[list[str]]],
    options: Options,
    command: str,
    more: dict[str, Any] | None = None,
) -> None:
    """Scores what the systems wrote, one list of texts a seed."""
    measures = {
        name: [written_measures(references, texts, (metric,))[metric] for texts in runs] for name, runs in systems.items()
    }
    record(task, metric, measures, options, command, more or {})


def record(
    task: str, metric: str, measures: dict[str, list[Measure]], options: Options, command: str, more: dict[str, Any]
) -> None:
    """Mean over seeds of each system, and the difference of the first from each other, paired by row."""
    n = len(next(iter(measures.values()))[0].statistics)
    rng = np.random.default_rng(SEED)
    counts = np.stack([np.ones(n), *(np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))])
    values = {name: np.stack([m.value(counts @ m.statistics) for m in runs]) for name, runs in measures.items()}
    means = {name: v.mean(0) for name, v in values.items()}
    first, *others = means
    found: dict[str, Any] = {
        "task": task, "metric": metric, "definition": measures[first][0].definition, "n": n, "seeds": options.seeds,
        "minutes": options.minutes, "cores": usable_cores(), "machine": MACHINE,
        "command": f"python benchmarks/tasks/writing.py {command}",
        "systems": {
            name: {"values": [round(float(x), 4) for x in v[:, 0]], "mean": float(means[name][0])} for name, v in values.items()
        },
        "differences": {}, **more,
    }  # fmt: skip
    for other in others:
        difference = means[first] - means[other]
        low, high = np.quantile(difference[1:], [0.025, 0.975])
        found["differences"][other] = {"value": float(difference[0]), "low": float(low), "high": float(high)}
        print(f"{task}: {first} − {other}: {difference[0]:+.4f} [{low:+.4f}, {high:+.4f}] ({metric}, {n} rows)")
    print(json.dumps(found["systems"]), json.dumps(more))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found, ensure_ascii=False) + "\n")


# Conversations ----------------------------------------------------------------------------------------------------------


def dialogue(name: str, options: Options) -> None:
    """The base model reads both languages, and the questions' side of nothing: documentation and reviews alone."""
    from zenspeed.run import open_run
    from zenspeed.tasks.base import Place
    from zenspeed.tasks.chat import ChatTask
    from zenspeed.tasks.rows import losses_by_document

    folder, mixed = data(name), CACHE / "tasks" / name / "base.jsonl"
    if not mixed.exists():
        from zenspeed.data.python_docs import python_docs

        reviews = [row["text"] for row in read(data("reviews") / "train.jsonl")]
        mixed.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*python_docs(), *reviews]), encoding="utf-8")
    roles = 'tokenizer.special_tokens=["<|system|>", "<|user|>", "<|assistant|>"]'
    model = ["model.preset=llama", "model.ngrams=[]", "optim.name=muon"]
    test = read(folder / "test.jsonl")
    sums: dict[str, list[Measure]] = {"zenspeed": [], "before tuning": []}
    texts_of: dict[str, list[list[str]]] = {"zenspeed": [], "before tuning": []}
    for seed in options.seeds:
        base = run(name, "generate-zh", seed, options, f"data.source={mixed}", roles, *model)
        tuned = run(name, "chat", seed, options, *sources(name), "tokenizer=null", "model=null",
                    f"model={{from_run: {base}, dropout: 0.1}}", "train.minutes=null", "train.epochs=6")  # fmt: skip
        after = open_run(tuned)
        task = ChatTask.of_run(after.recipe, after.tokenizer)
        examples, place = task.encode(test, "the test rows"), Place(nullcontext())
        for system, network in (("zenspeed", after.model), ("before tuning", open_run(base).model)):
            losses = task.outputs(network, examples, place, (2,), losses_by_document)
            sums[system].append(Measure(losses, _ratio, "mean loss of a token of the answer, in nats", False))
            answers = task.predict(network, test, place)
            texts_of[system].append([answer["prediction"] for answer in answers])
    record(name, "loss", sums, options, name, {})
    texts(name, "chrf", [row["target"] for row in test], texts_of, options, name)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


# Language models --------------------------------------------------------------------------------------------------------


def generate(name: str, options: Options) -> None:
    """Bits per byte of the validation documents: model, 5-grams of the same tokens, xz."""
    from zenspeed.evaluate.language import document_losses
    from zenspeed.run import open_run
    from zenspeed.tasks.language import LanguageTask

    more = [] if name == "generate-en" else [f"data.source={data('reviews') / 'train.jsonl'}"]
    bits: dict[str, list[Measure]] = {"zenspeed": [], "5-gram Kneser-Ney": [], "xz": []}
    for number, seed in enumerate(options.seeds):
        opened = open_run(run(name, name, seed, options, *more))
        task = LanguageTask(opened.recipe, None)
        held_out = task.prepared.validation
        context = opened.recipe.model.context  # the others look back as far as they like, so windows overlap
        losses, _ = document_losses(opened.model, held_out, context, 8, nullcontext(), overlap=3 * context // 4)
        sizes = np.asarray(held_out.document_bytes, np.float64)
        bits["zenspeed"].append(_bits(losses, sizes))
        if number == 0:  # the same for every seed
            train, rest = (stream(part) for part in (task.prepared.train, held_out))
            end = task.tokenizer.end_of_text
            grams = KneserNey(train, 5, task.tokenizer.vocab_size)
            bits["5-gram Kneser-Ney"].append(_bits(by_document(grams.losses(rest), rest, end), sizes))
            bits["xz"].append(_bits(np.log(2) * xz_bits(task.tokenizer, train, rest, sizes), sizes))
    record(name, "bits per byte", bits, options, name, {})


def _bits(nats: np.ndarray, sizes: np.ndarray) -> Measure:
    statistics = np.stack([np.asarray(nats, np.float64) / np.log(2), sizes], -1)
    return Measure(statistics, _ratio, "bits per byte of the validation documents", False)


def stream(dataset: Any) -> np.ndarray:
    return np.asarray(dataset.read(0, dataset.num_tokens), np.int64)


def by_document(losses: np.ndarray, tokens: np.ndarray, end: int) -> np.ndarray:
    """Sum of the losses of each document: of what follows its end-of-text, and of the one that ends it."""
    number = np.cumsum(tokens == end)[:-1] - 1
    return np.bincount(number, weights=losses[1:])


XZ_DOCUMENTS = 200


def xz_bits(tokenizer: Any, train: np.ndarray, rest: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Bits that each document adds behind the training text and the documents before it; of many, all take as much a byte."""
    known = tokenizer.decode(train).encode()
    parts = np.split(rest, np.flatnonzero(rest == rest[0])[1:])[: len(sizes)]
    texts = [tokenizer.decode(part).encode() for part in parts]
    if len(texts) > XZ_DOCUMENTS:
        texts = [b"".join(texts)]
    lengths = [len(lzma.compress(known + b"".join(texts[:count]), preset=9)) for count in range(len(texts) + 1)]
    bits = 8.0 * np.diff(lengths)
    return bits if len(bits) == len(sizes) else bits * sizes / sizes.sum()


# Pretraining ------------------------------------------------------------------------------------------------------------


def spans(name: str, options: Options) -> None:
    """Span corruption of the standard library's documentation, then summaries of docstrings; and without the first."""
    from zenspeed.run import open_run
    from zenspeed.tasks.base import Place
    from zenspeed.tasks.rows import losses_by_document
    from zenspeed.tasks.seq2seq import Seq2SeqTask

    folder = data("docstrings")
    held_out = read(folder / "test.jsonl") + read(folder / "validation.jsonl")
    plain = documents_without(name, {row["target"] for row in held_out})
    sums: dict[str, list[Measure]] = {"pretrained": [], "random": []}
    for seed in options.seeds:
        base = run(name, "spans", seed, options, f"data.source={plain}")
        config, tokenizer = open_run(base).recipe.model, base / "tokenizer"
        sizes = {key: getattr(config, key) for key in ("preset", "architecture", "layers", "width", "heads", "context")}
        for system, start in starts(base, tokenizer, sizes).items():
            tuned = run(f"{name}/{system}", "summarize", seed, options, f"data.source={folder / 'train.jsonl'}",
                        f"data.validation={folder / 'validation.jsonl'}", "data.leakage=allow", "train.minutes=null",
                        "train.steps=200", "train.batch_size=32", "task={kind: seq2seq, max_tokens: 128}", *start)  # fmt: skip
            opened = open_run(tuned)
            task = Seq2SeqTask.of_run(opened.recipe, opened.tokenizer)
            losses = task.outputs(opened.model, task.encode(held_out, "test"), Place(nullcontext()), (2,), losses_by_document)
            sums[system].append(Measure(losses, _ratio, "mean loss of a token of the summary, in nats", False))
    record(name, "loss", sums, options, name, {})


def documents_without(name: str, unseen: set[str]) -> Path:
    """Python's documentation without what begins with a text of `unseen`: what is tested on is not pretrained on either."""
    from zenspeed.data.python_docs import python_docs

    path = CACHE / "tasks" / name / "docs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = (
        "\n\n".join(part for part in text.split("\n\n") if part.strip() and part.strip() not in unseen)
        for text in python_docs()
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept if text), encoding="utf-8")
    return path


def starts(base: Path, tokenizer: Path, sizes: dict[str, Any]) -> dict[str, list[str]]:
    nothing = ["tokenizer=null", "model=null"]  # of what the recipe says
    return {
        "pretrained": [*nothing, f"model={{from_run: {base}, dropout: 0.1}}"],
        "random": [
            *nothing,
            f"tokenizer={{kind: folder, folder: {tokenizer}}}",
            f"model={json.dumps(sizes | {'dropout': 0.1})}",
        ],
    }


MASKED_STEPS = (60, 250)
"""Updates of fine-tuning: pretraining is worth most where there are few."""


def masked(name: str, options: Options) -> None:
    """Hidden words of the standard library's documentation, then the package of a docstring; and without the first."""
    from classify import read as read_table
    from fetch import packages

    from zenspeed.run import open_run

    folder = packages()
    test = read_table(folder / "test.csv")
    unseen = {part.strip() for row in test for part in row["text"].split("\n\n")}
    plain = documents_without(name, unseen)
    right: dict[int, dict[str, list[Measure]]] = {steps: {"pretrained": [], "random": []} for steps in MASKED_STEPS}
    for seed in options.seeds:
        base = run(name, "masked-en", seed, options, f"data.source={plain}")
        config, tokenizer = open_run(base).recipe.model, base / "tokenizer"
        keys = ("preset", "architecture", "layers", "width", "heads", "context", "tie_embeddings", "pool")
        for system, start in starts(base, tokenizer, {key: getattr(config, key) for key in keys}).items():
            for steps, measures in right.items():
                tuned = run(f"{name}/{system}-{steps}", "classify", seed, options, f"data.source={folder / 'train.csv'}",
                            f"data.test={folder / 'test.csv'}", "data.leakage=allow", "train.minutes=null",
                            f"train.steps={steps}", *start)  # fmt: skip
                said = [row["prediction"] for row in read(tuned / "predictions.jsonl")]
                hits = np.array([[row["label"] == label, 1.0] for row, label in zip(test, said, strict=True)], np.float64)
                measures[system].append(Measure(hits, _ratio, "share of rows with the right label", True))
    for steps, measures in right.items():
        record(f"{name}, {steps} updates", "accuracy", measures, options, name, {})


TASKS: dict[str, Callable[[str, Options], None]] = {
    "translate": translate,
    "summarize": summarize,
    "dialogue": dialogue,
    "generate-en": generate,
    "generate-zh": generate,
    "spans": spans,
    "masked": masked,
}

if __name__ == "__main__":
    main()

"""Answers and search of the shipped recipes beside their baselines, on the same test rows.

    python benchmarks/tasks/answers.py questions      recipes/answer.yaml beside lexical overlap: exact match, F1
    python benchmarks/tasks/answers.py knowledge      retrieve, then answer or refuse: recipes/knowledge.yaml beside BM25
    python benchmarks/tasks/answers.py search         recipes/search.yaml beside BM25 and the model before it was trained
    python benchmarks/tasks/answers.py replies        the same recipe: replies to a question, of ChatterBot's corpus

Every system scores each test row once a seed; the scores are kept in ~/.cache/zenspeed/tasks/NAME/scores, so that a run that
was stopped goes on. A figure is the mean over rows and seeds; its difference from a baseline has a 95 % interval from
resampling rows, the same for both. Nothing is chosen on test rows: the lexical baseline's window is chosen on training rows,
thresholds on the validation questions, each asked again without the passages that answer it. Results go to
benchmarks/results/tasks.jsonl, one line a metric.

lexical     the sentence with the most words of the question, each by its rarity; in it the longest run of words that the
            question does not have. No training.
bm25        words (k1 1.2, b 0.75); for answers, its passages read by `lexical`
untrained   MiniLM as it is
both        BM25 and the trained vectors, fused by rank
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from classify import read, resamples
from fetch import CACHE, MACHINE, RESULTS, ROOT, SETS, finish

from zenspeed.config import load
from zenspeed.evaluate.answers import answer_scores
from zenspeed.evaluate.ranking import ranking_scores
from zenspeed.recipe import Recipe
from zenspeed.retrieve.answer import Found, answer, calibrate, hits_without_answer
from zenspeed.retrieve.bm25 import words_of
from zenspeed.retrieve.documents import Document, read_documents
from zenspeed.retrieve.embed import open_embedder, open_reader
from zenspeed.retrieve.index import Hit, How, Index, build_index
from zenspeed.tasks.base import place_of

Scores = dict[str, list[float]]
MINILM = CACHE / "models" / "minilm"
_UNIT = re.compile(r"\S(?:[^\n.!?]|[.!?](?!\s)|\n(?!\s*\n))*[.!?]?")  # a sentence, at most to the next blank line
PASSAGES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SYSTEMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    for needed in (options.task, "minilm"):
        if not (CACHE / ("models" if needed == "minilm" else "tasks") / needed).exists():
            SETS[needed]()
    found = {
        system: [scores(options.task, system, seed) for seed in (options.seeds if system in TRAINED else [0])]
        for system in SYSTEMS[options.task]
    }
    report(options.task, found, options.seeds)


def scores(task: str, system: str, seed: int) -> Scores:
    path = CACHE / "tasks" / task / "scores" / f"{system}-{seed}.json"
    if not path.exists():
        start = time.perf_counter()
        made = SYSTEMS[task][system](seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
        means = ", ".join(f"{name} {np.nanmean(np.array(values, float)):.4f}" for name, values in made.items())
        print(f"{task} {system} seed {seed}: {means} in {time.perf_counter() - start:.0f} s", flush=True)
    loaded: Scores = json.loads(path.read_text())
    return loaded


def trained(task: str, recipe: str, seed: int) -> Path:
    """The folder of a run, trained if it is not there."""
    folder = CACHE / "tasks" / task / "runs" / f"zenspeed-{seed}"
    if not (folder / "report.md").exists():
        source = f"data.source={next((CACHE / 'tasks' / task).glob('train.*'))}"
        sets = [
            f"run.folder={folder}",
            f"run.seed={seed}",
            "evaluate.every=0",
            "log.tensorboard=false",
            "data.test=null",
            source,
        ]
        finish(load(Recipe, ROOT / "recipes" / f"{recipe}.yaml", sets))
    return folder


def rows_of(task: str, part: str) -> list[dict[str, Any]]:
    lines = (CACHE / "tasks" / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Questions with their context -----------------------------------------------------------------------------------------


class Lexical:
    """See above; `window`: 1, or 2 to look at the sentence after the best one as well."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts: dict[str, int] = {}
        for text in texts:
            for word in set(words_of(text)):
                counts[word] = counts.get(word, 0) + 1
        self.rarity = {word: float(np.log(len(texts) / count)) + 0.1 for word, count in counts.items()}
        self.new, self.window = float(np.log(len(texts))), 1

    def answer(self, question: str, context: str) -> tuple[str, float]:
        """The answer, and which share of the question (by rarity) its sentence has."""
        asked = set(words_of(question))
        units = [(m.start(), m.end()) for m in _UNIT.finditer(context)]
        if not units:
            return "", 0.0
        shares = [self._weight(asked & set(words_of(context[s:e]))) / max(self._weight(asked), 1e-9) for s, e in units]
        best = int(np.argmax(shares))
        start, end = units[best][0], units[min(best + self.window - 1, len(units) - 1)][1]
        runs: list[tuple[int, int, int]] = []  # words, start, end
        current: tuple[int, int, int] | None = None
        for word in re.finditer(r"\w+", context[start:end]):
            if word[0].lower() in asked:
                current = None
                continue
            current = (1, word.start(), word.end()) if current is None else (current[0] + 1, current[1], word.end())
            runs.append(current)
        if not runs:
            return "", 0.0
        longest = max(runs, key=lambda run: run[0])
        return context[start + longest[1] : start + longest[2]], shares[best]

    def _weight(self, words: set[str]) -> float:
        return sum(self.rarity.get(word, self.new) for word in words)

    def fit(self, rows: Sequence[dict[str, Any]]) -> None:
        """Chooses the window by F1 on training rows."""

        def f1(window: int) -> float:
            self.window = window
            said = [self.answer(row["question"], row["context"])[0] for row in rows]
            return float(answer_scores([[row["answer"]] for row in rows], said)[1].mean())

        self.window = max((1, 2), key=f1)


def lexical_reader(task: str) -> Lexical:
    rows = [row for row in rows_of(task, "train") if row["answer"]]
    reader = Lexical(list({row["context"] for row in rows}))
    reader.fit(rows)
    return reader


def answered(rows: Sequence[dict[str, Any]], said: Sequence[str]) -> Scores:
    exact, f1 = answer_scores([[row["answer"]] if row["answer"] else [] for row in rows], said)
    return {"exact_match": exact.tolist(), "token_f1": f1.tolist()}


def questions_lexical(seed: int) -> Scores:
    reader, rows = lexical_reader("questions"), rows_of("questions", "test")
    return answered(rows, [reader.answer(row["question"], row["context"])[0] for row in rows])


def questions_zenspeed(seed: int) -> Scores:
    reader, rows = open_reader(trained("questions", "answer", seed)), rows_of("questions", "test")
    spans = reader.task.find(reader.model, rows, place_of(reader.task.recipe))
    assert all(row["context"][span.start : span.end] == span.text for row, span in zip(rows, spans, strict=True))
    return answered(rows, [span.text for span in spans])


# A knowledge base -----------------------------------------------------------------------------------------------------


def knowledge_index() -> Index:
    return build_index(read_documents(str(CACHE / "tasks" / "knowledge" / "documents.jsonl")))


Find = Callable[[Index, list[str], list[list[Hit]]], list[Found]]  # reads the passages found for each question


def knowledge(find: Find) -> Scores:
    """Threshold by the validation questions, scores of the test questions; NaN where a score is not for that question."""
    index = knowledge_index()
    validation, test = (rows_of("knowledge", part) for part in ("validation", "test"))
    asked = [row["question"] for row in validation]
    references = [[row["answer"]] if row["answer"] else [] for row in validation]
    hits = hits_without_answer(index, asked, references, [row["document"] or None for row in validation], PASSAGES, "words")
    chosen = calibrate(find(index, asked, index.search(asked, PASSAGES, "words")), references, find(index, asked, hits))
    print(f"on validation questions: {chosen}")
    least, asked = chosen.refuse_below, [row["question"] for row in test]
    found = find(index, asked, index.search(asked, PASSAGES, "words"))
    given = [one.best if one.score >= least else "" for one in found]
    made = answered(test, given)
    pairs = list(zip(given, test, strict=True))
    made["refused_rightly"] = [float("nan") if row["answer"] else float(not text) for text, row in pairs]
    made["answered_where_there_is_one"] = [float(bool(text)) if row["answer"] else float("nan") for text, row in pairs]
    ids = [[hit.document.id for hit in one.hits] for one in found]
    for k in (1, PASSAGES):
        made[f"recall@{k}"] = [
            float(row["document"] in own[:k]) if row["document"] else float("nan") for own, row in zip(ids, test, strict=True)
        ]
    return made


def knowledge_bm25(seed: int) -> Scores:
    reader = lexical_reader("knowledge")

    def find(index: Index, asked: list[str], hits: list[list[Hit]]) -> list[Found]:
        found = []
        for question, own in zip(asked, hits, strict=True):
            read = [(*reader.answer(question, hit.text), hit.document.id) for hit in own] or [("", 0.0, "")]
            best = max(read, key=lambda one: one[1])
            found.append(Found(question, best[0], best[1], best[0], best[2], None, None, own))
        return found

    return knowledge(find)


def knowledge_zenspeed(seed: int) -> Scores:
    reader = open_reader(trained("knowledge", "knowledge", seed))
    return knowledge(lambda index, asked, hits: answer(index, asked, reader, hits=hits, refuse_below=0.0))


# Search ---------------------------------------------------------------------------------------------------------------


def search(task: str, how: How, model: Path | None) -> Scores:
    """Every test query among the texts of all pairs, those of training too."""
    folder = CACHE / "tasks" / task
    texts = list(dict.fromkeys(row["text"] for part in ("train", "test") for row in read(folder / f"{part}.csv")))
    number = {text: i for i, text in enumerate(texts)}
    belongs: dict[str, set[int]] = {}
    for row in read(folder / "test.csv"):
        belongs.setdefault(row["query"], set()).add(number[row["text"]])
    documents = [Document(str(i), text, {}) for i, text in enumerate(texts)]
    index = build_index(documents, open_embedder(model) if model else None, passage_characters=10**9)
    ranks = []
    for own, hits in zip(belongs.values(), index.search(list(belongs), 100, how), strict=True):
        found = [float(rank) for rank, hit in enumerate(hits, 1) if hit.passage in own]
        ranks.append(np.array(found + [np.inf] * (len(own) - len(found))))
    return {name: values.tolist() for name, values in ranking_scores(ranks).items()}


def searches(task: str) -> dict[str, Callable[[int], Scores]]:
    return {
        "zenspeed": lambda seed: search(task, "vectors", trained(task, "search", seed)),
        "both": lambda seed: search(task, "both", trained(task, "search", seed)),
        "bm25": lambda seed: search(task, "words", None),
        "untrained": lambda seed: search(task, "vectors", MINILM),
    }


SYSTEMS: dict[str, dict[str, Callable[[int], Scores]]] = {
    "questions": {"zenspeed": questions_zenspeed, "lexical": questions_lexical},
    "knowledge": {"zenspeed": knowledge_zenspeed, "bm25": knowledge_bm25},
    "search": searches("search"),
    "replies": searches("replies"),
}
TRAINED = ("zenspeed", "both")


# Comparison -----------------------------------------------------------------------------------------------------------


def report(task: str, found: dict[str, list[Scores]], seeds: list[int]) -> None:
    for metric in found["zenspeed"][0]:
        by_row = {system: np.array([run[metric] for run in runs], float).mean(0) for system, runs in found.items()}
        kept = ~np.isnan(by_row["zenspeed"])
        rows = {system: values[kept] for system, values in by_row.items()}
        n = int(kept.sum())
        drawn = resamples(n)
        record: dict[str, Any] = {
            "task": task, "metric": metric, "n": n, "seeds": seeds, "machine": MACHINE,
            "command": f"python benchmarks/tasks/answers.py {task}",
            "systems": {
                system: {
                    "values": [round(float(np.nanmean(np.array(run[metric], float))), 4) for run in runs],
                    "mean": float(rows[system].mean()),
                }
                for system, runs in found.items()
            },
            "differences": {},
        }  # fmt: skip
        for system in rows:
            if system in TRAINED:
                continue
            difference = rows["zenspeed"] - rows[system]
            low, high = np.quantile(difference[drawn].mean(1), [0.025, 0.975])
            record["differences"][system] = {"value": float(difference.mean()), "low": float(low), "high": float(high)}
            print(f"{task}: zenspeed − {system}: {difference.mean():+.4f} [{low:+.4f}, {high:+.4f}] ({metric}, {n} rows)")
        print(json.dumps(record["systems"]))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

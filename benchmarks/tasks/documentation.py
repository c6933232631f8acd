"""Questions, passages and pairs of texts out of Python's own documentation, which is on every machine; PSF licence.

Questions are made of sentences of `pydoc_data.topics` by four rules, so that anybody gets the same ones; the answer is the text
as it stands there:

gap          a sentence in which a quoted term ("for", *name*) is replaced by `what`; the answer is the term
definition   What does str.split do?            the first sentence below its signature
grammar      What is a for_stmt made of?        the right side of its rule
version      Since which version …: a change    the number

A question repeats words of its context, as SQuAD's do, and a gap repeats nearly all: the lexical baseline is strong here.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from fetch import CACHE, is_test, write_rows

_SENTENCE = re.compile(r"(?<!\S)(?:[A-Z]|[\"*]\w)[^.!?:;|]*(?:\.(?!\s)[^.!?:;|]*)*[.!?](?=\s|$)")
_TERM = re.compile(r"(?<!\w)(?:\"([\w.()\[\]{}+\-*/%=<>!@&|^~:, ]{1,40})\"|\*([\w]{2,30})\*)(?!\w)")
_NOTE = re.compile(r"(?:Changed|Added|New|Deprecated) (?:in|since) version (\d+\.\d+(?:\.\d+)?): (\S[^.]*(?:\.(?!\s)[^.]*)*\.)")
_DEFINED = re.compile(r"(?m)^ *((?:class |async )?[\w.]{3,})\([^\n]*\)\n(?:[\w. ]+\([^\n]*\)\n)*\n?   +(?=[A-Z])")
_RULE = re.compile(r"(?m)^ +(\w+) +::= (\S[^\n]*(?:\n +(?!\w+ +::=)\S[^\n]*)*)")
_CHARACTERS = 300  # of a context, at least: paragraphs are put together until they have as many


def contexts() -> list[tuple[str, str]]:
    """(topic, context): paragraphs in their order, those that an earlier topic had left out."""
    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        block: list[str] = []
        for paragraph in [*re.split(r"\n[ \t]*\n", topics[name]), ""]:
            if (key := " ".join(paragraph.split())) and key not in seen:
                seen.add(key)
                block.append(paragraph.rstrip())
            if block and (sum(map(len, block)) >= _CHARACTERS or not paragraph):
                found.append((name, "\n\n".join(block)))
                block = []
    return found


def questions_of(context: str) -> Iterator[dict[str, Any]]:
    """Rows kind, question, answer, answer_start."""
    for note in _NOTE.finditer(context):
        yield _row("version", f"Since which version of Python is this so: {_line(note[2])}", note[1], note.start(1))
    for signature in _DEFINED.finditer(context):
        if sentence := _SENTENCE.match(context, signature.end()):
            yield _row("definition", f"What does {signature[1]} do?", sentence[0], sentence.start())
    for rule in _RULE.finditer(context):
        yield _row("grammar", f"What is a {rule[1]} made of?", rule[2].rstrip(), rule.start(2))
    for sentence in _SENTENCE.finditer(context):
        if 40 <= len(sentence[0]) <= 250 and (term := _one_term(sentence[0])):
            group = 1 if term[1] is not None else 2
            asked = _line(sentence[0][: term.start()] + "what" + sentence[0][term.end() :])
            yield _row("gap", asked, term[group], sentence.start() + term.start(group))


def _one_term(sentence: str) -> re.Match[str] | None:
    """A quoted term that stands only once in the sentence, chosen by the sentence's hash."""
    terms = [term for term in _TERM.finditer(sentence) if sentence.count(term[1] or term[2]) == 1]
    return terms[int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4]) % len(terms)] if terms else None


def _row(kind: str, question: str, answer: str, start: int) -> dict[str, Any]:
    return {"kind": kind, "question": question, "answer": answer, "answer_start": start}


def _line(text: str) -> str:
    return " ".join(text.split())


def questions() -> Path:
    """train.jsonl and test.jsonl: question, context, answer, answer_start; every context on one side only."""
    folder = CACHE / "tasks" / "questions"
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for topic, context in contexts():
        rows[is_test(context)] += [{"topic": topic, **row, "context": context} for row in questions_of(context)]
    write_rows(folder / "train.jsonl", rows[False])
    write_rows(folder / "test.jsonl", rows[True])
    return folder


def knowledge() -> Path:
    """A knowledge base and questions to it, some of which it cannot answer.

    documents.jsonl holds all contexts but one in seven, by hash; test.jsonl and validation.jsonl questions to half of all
    contexts, with the document that answers them, or with an empty answer where it was left out. train.jsonl, for a reader: the
    other questions, each with its context, and again with the context that BM25 finds first of those to learn from without the
    answer, where it has none.
    """
    from zenspeed.retrieve.bm25 import BM25

    found = [(f"{topic}:{number}", text) for number, (topic, text) in enumerate(contexts())]
    folder = CACHE / "tasks" / "knowledge"
    kept = [(name, text) for name, text in found if not is_test(f"left out {text}", 1 / 7)]
    write_rows(folder / "documents.jsonl", [{"id": name, "text": text} for name, text in kept])
    to_learn, names = [text for _, text in found if not is_test(text, 0.5)], {name for name, _ in kept}
    bm25 = BM25.build(to_learn)
    train: list[dict[str, Any]] = []
    asked: dict[str, list[dict[str, Any]]] = {"validation": [], "test": []}
    for name, text in found:
        for row in questions_of(text):
            if is_test(text, 0.5):
                there = name in names
                part = "validation" if is_test(f"validation {text}", 0.3) else "test"
                asked[part].append(row | {"answer": row["answer"] if there else "", "document": name if there else ""})
                continue
            train.append({**row, "context": text})
            order = bm25.scores(row["question"]).argsort(kind="stable")[::-1]
            other = next(to_learn[i] for i in order if row["answer"] not in to_learn[i])
            train.append({**row, "context": other, "answer": "", "answer_start": None})
    write_rows(folder / "train.jsonl", train)
    for part, rows in asked.items():
        write_rows(folder / f"{part}.jsonl", rows)
    return folder


def search() -> Path:
    """train.csv and test.csv: the first line of a docstring (query) and its body (text) in the standard library."""
    rows: dict[str, str] = {}
    for _, text in library():
        first, _, body = text.partition("\n\n")
        query, body = _line(first), body.strip()
        if 20 <= len(query) <= 200 and len(body) >= 80 and query not in rows:
            rows[query] = _line(body)
    counts = Counter(rows.values())
    return _split("search", [{"query": query, "text": text} for query, text in rows.items() if counts[text] == 1])


def packages() -> Path:
    """train.csv and test.csv: a docstring (text) and its package (label), of the 16 packages that have most of them."""
    of = {text: package for package, text in library() if len(text) >= 40}
    most = {package for package, _ in Counter(of.values()).most_common(16)}
    return _split("packages", [{"text": text, "label": package} for text, package in of.items() if package in most])


def library() -> Iterator[tuple[str, str]]:
    """(package, docstring) of the standard library, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(path.parts):
            for text in _docstrings(path):
                yield path.relative_to(root).parts[0].removesuffix(".py"), text


def _split(name: str, rows: list[dict[str, Any]]) -> Path:
    folder = CACHE / "tasks" / name
    for part, wanted in (("train", False), ("test", True)):
        write_rows(folder / f"{part}.csv", [row for row in rows if is_test(row["text"]) == wanted])
    return folder


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""

"""JSON files that are one value: a list of rows, or questions in the format of SQuAD.

SQuAD (versions 1.1 and 2.0) nests {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}.
Each question becomes a row `id, title, question, context, answer`; `answer` is {"text": […], "answer_start": […]}, empty lists
where the context holds none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from zenspeed.config import InputError
from zenspeed.data.reading import BadRow, Row
from zenspeed.data.streams import File, opened


def read_json(path: File, encoding: str = "utf-8") -> Iterator[tuple[int, Row | BadRow]]:
    """Number and row.

    Raises:
        InputError: the file is not JSON, or neither a list nor SQuAD's format.
    """
    with opened(path, encoding) as file:
        try:
            content: Any = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}; JSON lines are files named .jsonl") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        rows: Iterator[Any] = _squad(content["data"], path)
    elif isinstance(content, list):
        rows = iter(content)
    else:
        raise InputError(f"{path}: neither a list of rows nor SQuAD's format, an object with the list `data`")
    for number, row in enumerate(rows, 1):
        good = isinstance(row, dict | BadRow)
        yield number, row if good else BadRow(f"{path}: row {number}", f"expected an object, this is a {type(row).__name__}")


def _squad(articles: list[Any], path: File) -> Iterator[Row | BadRow]:
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_list(article, "paragraphs")):
            for q, question in enumerate(_list(paragraph, "qas")):
                place = f"{path}: data[{a}].paragraphs[{p}].qas[{q}]"
                try:
                    answers = [] if question.get("is_impossible") else question["answers"]
                    yield {
                        "id": question.get("id", f"{a}.{p}.{q}"),
                        "title": article.get("title", ""),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answer": {name: [x[name] for x in answers] for name in ("text", "answer_start")},
                    }
                except (KeyError, TypeError, AttributeError) as error:
                    yield BadRow(place, f"is not in SQuAD's format: {type(error).__name__} {error}")


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []

"""Documents to search in, and the passages they are cut into, each with its place in its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError
from zenspeed.data.files import PYTHON_DOCS, ROW_SUFFIXES, source_files
from zenspeed.data.python_docs import python_docs
from zenspeed.data.rows import RowOptions, read_rows
from zenspeed.data.source import documents, section_end
from zenspeed.data.streams import suffix_of
from zenspeed.recipe import DataConfig
from zenspeed.text.normalize import replace_surrogates

_ROWS = (*ROW_SUFFIXES, ".json")


class Document(NamedTuple):
    id: str
    text: str
    fields: dict[str, Any]
    """The other columns of its row; `answer` is given for a question that finds the document, where no reader is used."""


class Passages(NamedTuple):
    """(passages,) int64 each: the document by number, and the characters of it, `text[start:end]`."""

    document: np.ndarray
    start: np.ndarray
    end: np.ndarray


def read_documents(source: str, text: str = "text") -> list[Document]:
    """The documents of rows (the column `text`, and `id` where there is one), of text files (each one), or `python-docs`.

    Raises:
        InputError: nothing is there, nothing but blank space, or two documents have the same id.
    """
    if source == PYTHON_DOCS:
        texts = {one.split("\n", 1)[0]: one for one in python_docs()}  # a topic of the name of a module: the topic
        found = [Document(name, one, {}) for name, one in texts.items()]
    else:
        found = _of_rows(source, text) if _is_rows(source) else _of_files(source)
    found = [document for document in found if document.text.strip()]
    if not found:
        raise InputError(f"{source}: holds no text to search in; give documents with some")
    seen: set[str] = set()
    for document in found:
        if document.id in seen:
            raise InputError(f"{source}: two documents have the id {document.id!r}; give each its own")
        seen.add(document.id)
    return found


def _is_rows(source: str) -> bool:
    return suffix_of(source_files(source)[0]) in _ROWS


def _of_rows(source: str, text: str) -> list[Document]:
    found = []
    for number, row in enumerate(read_rows(source, RowOptions(columns=(text,))), 1):
        fields = {name: value for name, value in row.items() if name not in ("id", text)}
        content = "" if row[text] is None else str(row[text])
        found.append(Document(str(row.get("id", number)), replace_surrogates(content), fields))
    return found


def _of_files(source: str) -> list[Document]:
    paths = source_files(source)
    texts = ["\n".join(documents(DataConfig(section_characters=0), str(path))) for path in paths]
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    return [Document(name if unique else str(path), t, {}) for name, path, t in zip(names, paths, texts, strict=True)]


def cut(texts: Sequence[str], characters: int) -> Passages:
    """Passages of `characters` to twice as many, cut at blank lines, else at ends of lines, else at spaces."""
    places = []
    for number, text in enumerate(texts):
        start = 0
        while start < len(text):
            end = len(text) if len(text) - start <= 2 * characters else section_end(text, start, characters)
            inside = text[start:end]
            first = start + len(inside) - len(inside.lstrip())
            if first < end:
                places.append((number, first, start + len(inside.rstrip())))
            start = end
    columns = np.array(places, np.int64).reshape(-1, 3).T
    return Passages(*(np.ascontiguousarray(column) for column in columns))

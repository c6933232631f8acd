"""An index: documents in passages, found by their words (BM25), by their vectors, or by both.

A folder: index.json, documents.jsonl, words.json, and arrays.safetensors with the places of passages, the lists of BM25 and,
where a model was given, a vector a passage. Nothing in it is executed when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zenspeed.config import InputError, write_atomically
from zenspeed.errors import missing
from zenspeed.retrieve.bm25 import BM25
from zenspeed.retrieve.documents import Document, Passages, cut
from zenspeed.retrieve.embed import Embedder, open_embedder

How = Literal["words", "vectors", "both"]
PASSAGE_CHARACTERS = 600
MAGIC, VERSION = "zenspeed index", 1
_FUSED = 100  # passages of each list that are put together
_FUSION = 60  # Cormack et al. 2009, "Reciprocal Rank Fusion": the score is Σ 1 / (60 + rank)


class Hit(NamedTuple):
    """A passage found. `document.text[start:end] == text`; `score` is a cosine, or BM25's where there are no vectors."""

    passage: int
    document: Document
    start: int
    end: int
    text: str
    score: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        place = {"document": self.document.id, "start": self.start, "end": self.end, "text": self.text}
        return place | {"score": round(self.score, 6)} | ({"fields": self.document.fields} if self.document.fields else {})


class Index:
    """Made by `build_index` or `open_index`; `search` may be called from several threads."""

    def __init__(
        self,
        documents: Sequence[Document],
        passages: Passages,
        bm25: BM25,
        vectors: np.ndarray | None,
        embedder: Embedder | None,
        settings: dict[str, Any],
    ) -> None:
        self.documents, self.passages, self.bm25 = documents, passages, bm25
        self.vectors, self.embedder, self.settings = vectors, embedder, settings

    def __len__(self) -> int:
        """Passages."""
        return len(self.passages.document)

    @property
    def refuse_below(self) -> float | None:
        """Score below which an answer is not given, as chosen by `calibrate`."""
        return self.settings.get("refuse_below")

    def text(self, passage: int) -> str:
        document, start, end = (int(column[passage]) for column in self.passages)
        return self.documents[document].text[start:end]

    def search(self, queries: Sequence[str], k: int = 10, how: How | None = None) -> list[list[Hit]]:
        """The `k` best passages of each query, best first; fewer where the words of a query are in fewer.

        Args:
            how: by words, vectors or both; default: both, where the index has vectors.

        Raises:
            InputError: vectors are asked for and there are none.
        """
        how = how or ("words" if self.vectors is None else "both")
        if how != "words" and self.vectors is None:
            raise InputError(f"how {how}: this index has no vectors; make it with a model: zenspeed index … --run RUN")
        cosines = self._cosines(queries) if how != "words" else None
        found = []
        order: Sequence[int]
        for i, query in enumerate(queries):
            if how == "vectors":
                assert cosines is not None
                order, scores = _best(cosines[i], k, 0).tolist(), cosines[i]
            elif cosines is None:
                scores = self.bm25.scores(query)
                order = _best(scores, k, 1).tolist()
            else:
                scores = cosines[i]
                order = _fuse([_best(self.bm25.scores(query), _FUSED, 1), _best(scores, _FUSED, 0)])[:k]
            found.append([self._hit(passage, float(scores[passage])) for passage in order])
        return found

    def _cosines(self, queries: Sequence[str]) -> np.ndarray:
        assert self.vectors is not None
        if self.embedder is None:
            raise InputError("the model that made this index's vectors is not open; open the index with it")
        return self.embedder.embed(queries) @ self.vectors.T

    def _hit(self, passage: int, score: float) -> Hit:
        document, start, end = (int(column[passage]) for column in self.passages)
        return Hit(passage, self.documents[document], start, end, self.text(passage), score)

    def save(self, folder: Path) -> None:
        """Writes the index into `folder`, in the place of an index that is there.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "documents.jsonl").exists():
            raise InputError(f"{folder}: is not empty and holds no index; give another folder")
        arrays = dict(zip(Passages._fields, self.passages, strict=True))
        arrays |= {"bm25.starts": self.bm25.starts, "bm25.passages": self.bm25.passages, "bm25.weights": self.bm25.weights}
        if self.vectors is not None:
            arrays["vectors"] = self.vectors
        lines = (json.dumps({"id": d.id, "text": d.text, "fields": d.fields}, ensure_ascii=False) for d in self.documents)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "index.json").unlink(missing_ok=True)  # written last: without it the rest is no index
            write_atomically(folder / "documents.jsonl", "\n".join(lines) + "\n")
            write_atomically(folder / "words.json", json.dumps(list(self.bm25.vocabulary), ensure_ascii=False))
            save_file(arrays, folder / "arrays.safetensors")
            self.save_settings(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None

    def save_settings(self, folder: Path) -> None:
        """index.json alone, after a setting was changed."""
        write_atomically(Path(folder) / "index.json", json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n")


def build_index(
    documents: Sequence[Document], embedder: Embedder | None = None, passage_characters: int = PASSAGE_CHARACTERS
) -> Index:
    """Cuts documents into passages and indexes them; with `embedder` by their vectors as well.

    Raises:
        InputError: there is no text in the documents.
    """
    passages = cut([document.text for document in documents], passage_characters)
    if not len(passages.document):
        raise InputError("index: the documents hold no text; give some that do")
    texts = [documents[d].text[s:e] for d, s, e in zip(*passages, strict=True)]
    settings: dict[str, Any] = {
        "magic": MAGIC, "version": VERSION, "documents": len(documents), "passages": len(texts),
        "passage_characters": passage_characters, "model": str(embedder.source.resolve()) if embedder else None,
        "refuse_below": None,
    }  # fmt: skip
    vectors = embedder.embed(texts) if embedder else None
    return Index(documents, passages, BM25.build(texts), vectors, embedder, settings)


def open_index(folder: Path, run: Path | None = None, *, vectors: bool = True) -> Index:
    """The index in `folder`, with the model that made its vectors, or that model at another place (`run`).

    `vectors`: False leaves them and their model aside; it is then searched by words.

    Raises:
        InputError: no index there, a file of it is missing or damaged, or the model gives other vectors than those kept.
    """
    folder = Path(folder)
    settings = _settings(folder)
    try:
        arrays = load_file(folder / "arrays.safetensors")
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        with (folder / "documents.jsonl").open(encoding="utf-8") as lines:
            documents = [Document(**json.loads(line)) for line in lines]
        passages = Passages(*(arrays[name] for name in Passages._fields))
        starts, places, weights = (arrays[f"bm25.{name}"] for name in ("starts", "passages", "weights"))
        bm25 = BM25({word: i for i, word in enumerate(words)}, starts, places, weights, len(passages.document))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: the index is damaged ({error}); make it again: zenspeed index") from None
    kept = arrays.get("vectors")
    if kept is None or not vectors:
        return Index(documents, passages, bm25, None, None, settings)
    embedder = open_embedder(run or Path(settings["model"]))
    index = Index(documents, passages, bm25, kept, embedder, settings)
    again = embedder.embed([index.text(0)])[0]
    if again.shape != kept[0].shape or float(again @ kept[0]) < 0.99:
        raise InputError(f"{folder}: was made with another model than {embedder.source} is now; make it again, or give --run")
    return index


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(folder, "index", "no index there") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(settings, dict) or settings.get("magic") != MAGIC or settings.get("version") != VERSION:
        raise InputError(f"{path}: not an index of version {VERSION}; make it again: zenspeed index")
    return settings


def _best(scores: np.ndarray, k: int, least: int) -> np.ndarray:
    """The `k` highest, highest first, equal ones in their order; with `least` those above zero only."""
    k = min(k, len(scores))
    chosen = np.sort(np.argpartition(-scores, k - 1)[:k]) if k < len(scores) else np.arange(len(scores))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    return chosen[scores[chosen] > 0] if least else chosen


def _fuse(lists: Sequence[np.ndarray]) -> list[int]:
    scores: dict[int, float] = {}
    for order in lists:
        for rank, passage in enumerate(order.tolist(), 1):
            scores[passage] = scores.get(passage, 0.0) + 1 / (_FUSION + rank)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))

"""Text to token shards: split by document, train the tokenizer, encode, write; once for each content and settings.

    source → documents ─┬─ hash of the text < share → validation ─────────────┐
                        └─ the others → train ──┬── tokenizer (train only) ───┴→ encode → shards
                                                └─────────────────────────────────────────┘

A document's side depends on its text alone (on no seed of the run), so a duplicate is never on the other side, the order of
files does not matter, runs with different seeds can be compared, and a document stays where it was when more are added.

The result is cached in `data.cache` under a hash of what it was made from. A file's content hash is remembered by path, size
and time of modification, so a hit reads no text. A folder is built under a temporary name and renamed when complete: one that
has its final name can be trusted, and two processes that prepare the same thing do not clash.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import InputError, read_text, write_atomically
from zenspeed.data import on_disk, python_docs
from zenspeed.data.hub import HUB
from zenspeed.data.numbers import num_common, num_distinct, slices
from zenspeed.data.on_disk import NumbersOnDisk, TextsOnDisk
from zenspeed.data.shards import TokenDataset, token_dtype, write_shard
from zenspeed.data.source import PYTHON_DOCS, SourceReport, documents, source_files, sources_of
from zenspeed.data.streams import File
from zenspeed.recipe import DataConfig, Recipe, TokenizerConfig
from zenspeed.text.coverage import check_unknown
from zenspeed.text.tokenizer import Tokenizer

FORMAT = 3
"""Raised when the same text and settings would give other shards, so that older caches are not used."""

_SHARD_TOKENS = 64_000_000
_CHUNK_CHARACTERS = 4_000_000  # encoded at once; the library needs about 100 bytes a character meanwhile
_TOKENIZER_CHARACTERS = 100_000_000  # a sample of this size is enough to learn merges from, and bounds the memory of that
_ABANDONED_SECONDS = 24 * 3600

Progress = Callable[[str], None]


class Prepared(NamedTuple):
    """Data ready for training."""

    tokenizer: Tokenizer
    train: TokenDataset
    validation: TokenDataset
    folder: Path
    """Holds the shards, tokenizer/ and prepared.json."""
    report: dict[str, Any]
    """What prepared.json holds: counts for each split, fingerprints, settings, seconds."""


def prepare(recipe: Recipe, progress: Progress | None = None) -> Prepared:
    """The tokenizer and token shards of `recipe.data`, from the cache if they were made before.

    Raises:
        InputError: the source cannot be used, the cache cannot be written, a cached file is damaged, or the training split is
            shorter than one sequence.
    """
    cache = recipe.data.cache.expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / _key(recipe, cache)
        if not _is_complete(folder):
            _build(recipe, folder, progress or (lambda message: None))
    except OSError as error:
        raise _explain(error, cache) from None
    prepared = _open(folder)
    _check_length(prepared, recipe)
    return prepared


def encode_held_out(data: DataConfig, source: str, tokenizer: Tokenizer, folder: Path) -> TokenDataset:
    """All documents of `source` as shards in `folder`, an existing one: text to evaluate on that is no part of a run's data."""
    corpus = _Documents(data, source, folder)
    split = _Split(corpus, np.ones(len(corpus), bool))
    report = _write_split(folder, "held-out", split, tokenizer)
    return TokenDataset.open([folder / name for name in report["shards"]])


def _open(folder: Path) -> Prepared:
    report = json.loads(read_text(folder / "prepared.json"))
    train, validation = (
        TokenDataset.open([folder / name for name in report[split]["shards"]]) for split in ("train", "validation")
    )
    try:
        tokenizer = Tokenizer.load(folder / "tokenizer")
    except InputError as error:
        raise InputError(f"{error}; delete {folder} and run `zenspeed prepare` again") from None
    if tokenizer.fingerprint != report["tokenizer"]["fingerprint"]:
        raise InputError(
            f"{folder / 'tokenizer'}: is not the one the data was made with; delete {folder} and run `zenspeed prepare` again"
        )
    return Prepared(tokenizer, train, validation, folder, report)


def _is_complete(folder: Path) -> bool:
    """Whether every file of a prepared folder is there; a user may have deleted a damaged one."""
    try:
        report = json.loads(read_text(folder / "prepared.json"))
        names = [name for split in ("train", "validation") for name in report[split]["shards"]]
    except (InputError, ValueError, KeyError, TypeError):
        return False
    return all((folder / name).exists() for name in [*names, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])


def _check_length(prepared: Prepared, recipe: Recipe) -> None:
    """Documents are packed, so they may be shorter than the context, but one whole sequence must come together."""
    tokens, context = prepared.train.num_tokens, recipe.model.context
    if tokens < context + 1:
        raise InputError(
            f"model.context: a sequence of {context} tokens is longer than the training split of {recipe.data.source}, "
            f"which has {tokens} tokens in all; give --set model.context={max(2, (tokens - 1) // 2)} or less, or more text"
        )


# ---- what a result is named by


def _key(recipe: Recipe, cache: Path) -> str:
    data, tokenizer = recipe.data, recipe.tokenizer
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "source": [
            [_content(part.source, data, cache), part.weight, part.text_column] for part in sources_of(data, data.source)
        ],
        "validation": _content(data.validation, data, cache) if isinstance(data.validation, str) else data.validation,
        "text_column": data.text_column,
        "mixture_seed": data.mixture_seed,
        "encoding": data.encoding,
        "on_bad_row": data.on_bad_row,
        "clean": data.clean.model_dump(mode="json"),
        "section_characters": data.section_characters,
        "tokenizer": tokenizer.kind,
    }
    if tokenizer.kind not in ("char", "folder"):
        made_from["vocab_size"] = tokenizer.vocab_size
        if tokenizer.or_fewer:
            made_from["or_fewer"] = True
    if tokenizer.special_tokens:
        made_from["special_tokens"] = tokenizer.special_tokens
    if tokenizer.kind == "folder":
        made_from["tokenizer_fingerprint"] = _load_tokenizer(tokenizer).fingerprint
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _content(source: str, data: DataConfig, cache: Path) -> str:
    """Hash of what `source` holds; files are read only when one of them is new or was changed."""
    if source == PYTHON_DOCS:
        return f"{PYTHON_DOCS} {python_docs.identity()}"
    seen = hashlib.sha256()
    files = source_files(source, split=data.split, endpoint=data.endpoint, fetch=data.fetch, cache=data.cache)
    for path in files:
        seen.update(f"{_looks(path)}\n".encode("utf-8", "surrogateescape"))
    memo = cache / "contents" / seen.hexdigest()[:32]
    if memo.exists():
        return memo.read_text()
    content = hashlib.sha256()
    for path in files:
        content.update(path.suffix.encode("utf-8", "surrogateescape") + b"\0" + _file_hash(path))
    memo.parent.mkdir(exist_ok=True)
    write_atomically(memo, content.hexdigest())
    return content.hexdigest()


def _looks(path: File) -> str:
    """What tells without reading it that a file is the one seen before."""
    if not isinstance(path, Path):
        return f"{path}\0{path.identity}"
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


def _file_hash(path: File) -> bytes:
    if not isinstance(path, Path):
        return bytes.fromhex(path.identity)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


# ---- building


def _build(recipe: Recipe, folder: Path, progress: Progress) -> None:
    _remove_abandoned(folder.parent)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        report = _write(recipe, building, progress)
        if _key(recipe, folder.parent) != folder.name:
            raise InputError(f"{recipe.data.source}: changed while it was read; run it again")
        write_atomically(building / "prepared.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        building.chmod(0o755)  # mkdtemp's is private
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_in_place(building: Path, folder: Path) -> None:
    """Gives a complete folder its final name, or leaves it where another process was faster."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        building.rename(folder)
    except OSError:  # the name is taken: renaming onto a folder that is not empty fails
        if not _is_complete(folder):
            raise


def _remove_abandoned(cache: Path) -> None:
    """Removes what builds that were killed left behind, a day later."""
    for path in cache.glob(".building-*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _write(recipe: Recipe, folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes the tokenizer and the shards of both splits into `folder`; returns the report."""
    began = time.perf_counter()
    data = recipe.data
    progress(f"reading {data.source}")
    train, validation = _splits(data, folder)
    for line in [*train.report.lines(), *(validation.report.lines() if isinstance(data.validation, str) else [])]:
        progress(line)
    read_seconds = time.perf_counter() - began

    tokenizer = _tokenizer(recipe.tokenizer, train, progress)
    tokenizer.save(folder / "tokenizer")
    tokenizer_seconds = time.perf_counter() - began - read_seconds

    splits = {}
    for name, split in (("train", train), ("validation", validation)):
        progress(f"encoding {name}: {split.num_documents:,} documents, {split.num_characters:,} characters")
        splits[name] = _write_split(folder, name, split, tokenizer)
        unknown, tokens = splits[name]["num_unknown_tokens"], splits[name]["num_tokens"]
        check_unknown(unknown, tokens, recipe.tokenizer.max_unknown, f"{data.source}, {name}")
    seconds = time.perf_counter() - began
    return {
        "format": FORMAT,
        "source": data.source,
        **splits,
        "reading": train.report.as_dict(),
        "reading_validation": validation.report.as_dict() if isinstance(data.validation, str) else None,
        # Only a separate validation text can share documents with the training text.
        "validation_documents_also_in_train": num_common(validation.hashes, train.hashes)
        if isinstance(data.validation, str)
        else 0,
        "tokenizer": {
            "kind": recipe.tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
        "seconds": {
            "read": round(read_seconds, 3),
            "tokenizer": round(tokenizer_seconds, 3),
            "encode": round(seconds - read_seconds - tokenizer_seconds, 3),
            "all": round(seconds, 3),
        },
    }


def _tokenizer(config: TokenizerConfig, train: _Split, progress: Progress) -> Tokenizer:
    if config.kind == "folder":
        return _load_tokenizer(config)
    progress(f"training the tokenizer ({config.kind}) on {train.num_characters:,} characters")
    texts = train if config.kind == "char" else train.sample(_TOKENIZER_CHARACTERS)
    return Tokenizer.train(
        config.kind, texts, config.vocab_size, or_fewer=config.or_fewer, special_tokens=config.special_tokens
    )


def _load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    assert config.folder is not None
    return Tokenizer.load(config.folder.expanduser())


# ---- documents and their sides


class _Documents:
    """All documents of a source, with a hash of each. A small corpus is kept in memory, a larger one read for each pass.

    Hashes and lengths lie on disk, in `folder`: sixteen bytes a document, and there may be many millions. So does a large
    corpus that is not to be read twice: one that is cleaned, or comes over the network.
    """

    def __init__(self, config: DataConfig, source: str, folder: Path) -> None:
        self._config, self._source = config, source
        hashes, lengths = NumbersOnDisk(np.uint64, folder), NumbersOnDisk(np.int64, folder)
        self.report = SourceReport()
        held: list[str] = []
        stored = TextsOnDisk(folder) if _is_dear(config, source) else None
        num_characters = 0
        for text in documents(config, source, self.report):
            hashes.append(_document_hash(text))
            lengths.append(len(text))
            num_characters += len(text)
            if num_characters <= on_disk.HELD_CHARACTERS:
                held.append(text)
            elif stored is None:
                held.clear()
            else:
                for one in (*held, text):
                    stored.append(one)
                held.clear()
        self.hashes, self.lengths = hashes.finish(), lengths.finish()
        self._kept: list[str] | TextsOnDisk | None = held if num_characters <= on_disk.HELD_CHARACTERS else stored
        if stored is not None:
            stored.finish()

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept) if self._kept is not None else documents(self._config, self._source)

    def where(self, condition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(num_documents,) bool: what `condition` says of their hashes."""
        out = np.empty(len(self), bool)
        for part in slices(len(self)):
            out[part] = condition(self.hashes[part])
        return out


def _is_dear(config: DataConfig, source: str) -> bool:
    parts = sources_of(config, source)
    return config.clean.does_anything or (not config.fetch and any(part.source.startswith(HUB) for part in parts))


class _Split:
    """Those documents of a corpus whose place in `chosen`, (num_documents,) bool, is true."""

    def __init__(self, corpus: _Documents, chosen: np.ndarray) -> None:
        self._corpus, self._chosen = corpus, chosen
        self.num_documents = int(chosen.sum())
        self.report = corpus.report
        self.num_characters = sum(int(corpus.lengths[part][chosen[part]].sum()) for part in slices(len(corpus)))

    def __iter__(self) -> Iterator[str]:
        return itertools.compress(self._corpus, self._chosen)

    def hashes(self) -> Iterator[np.ndarray]:
        """The documents' hashes, a few at a time."""
        return (self._corpus.hashes[part][self._chosen[part]] for part in slices(len(self._corpus)))

    def sample(self, num_characters: int) -> _Split:
        """About `num_characters` of this split, or all of it, chosen by the documents' hashes."""
        if self.num_characters <= num_characters:
            return self
        # The low bits: the high ones have already decided the side.
        most = (num_characters / self.num_characters) * 2**32
        return _Split(self._corpus, self._chosen & self._corpus.where(lambda hashes: (hashes & np.uint64(0xFFFFFFFF)) < most))

    def chunks(self) -> Iterator[list[str]]:
        """The documents in lists of about _CHUNK_CHARACTERS."""
        chunk: list[str] = []
        size = 0
        for text in self:
            chunk.append(text)
            size += len(text)
            if size >= _CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk


def _document_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"zenspeed-split").digest(), "little")


def _splits(data: DataConfig, folder: Path) -> tuple[_Split, _Split]:
    """Training and validation documents, at least one of each."""
    corpus = _Documents(data, data.source, folder)
    if isinstance(data.validation, str):
        held_out = _Documents(data, data.validation, folder)
        return _Split(corpus, np.ones(len(corpus), bool)), _Split(held_out, np.ones(len(held_out), bool))
    least, most = min(int(part.min()) for part in _all(corpus)), max(int(part.max()) for part in _all(corpus))
    if least == most:
        raise InputError(
            f"{data.source}: holds one document, so none can be held out for validation; "
            "lower data.section_characters to cut it smaller, or give a second text as data.validation"
        )
    end = np.uint64(min(max(int(data.validation * 2.0**64), least + 1), most))  # one of each side at least
    chosen = corpus.where(lambda hashes: hashes < end)
    return _Split(corpus, ~chosen), _Split(corpus, chosen)


def _all(corpus: _Documents) -> Iterator[np.ndarray]:
    return (corpus.hashes[part] for part in slices(len(corpus)))


# ---- shards


def _write_split(folder: Path, name: str, split: _Split, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encodes a split into shards in `folder`; returns its part of the report."""
    writer = _ShardWriter(folder, name, tokenizer)
    longest = num_unknown = 0
    for texts in split.chunks():
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            writer.add(ids, len(text.encode()))
            longest = max(longest, len(ids))
            if tokenizer.unknown is not None:
                num_unknown += int((ids == tokenizer.unknown).sum())
    names = writer.finish()
    dataset = TokenDataset.open([folder / name for name in names])
    return {
        "shards": names,
        "num_documents": dataset.num_documents,
        "num_tokens": dataset.num_tokens,
        "num_bytes": dataset.num_bytes,
        "num_characters": split.num_characters,
        "num_duplicates": split.num_documents - num_distinct(split.hashes),
        "num_unknown_tokens": num_unknown,
        "longest_document_tokens": longest,
        "fingerprint": dataset.fingerprint,
    }


class _ShardWriter:
    """Collects documents and writes a shard whenever about _SHARD_TOKENS are there; no document is in two shards."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self._folder, self._name = folder, name
        self._end_of_text = np.array([tokenizer.end_of_text], dtype=token_dtype(tokenizer.vocab_size))
        self._written: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._tokens = array("H" if self._end_of_text.itemsize == 2 else "I")  # an object a document would be four times this
        self._starts, self._bytes = array("q"), array("q")

    def add(self, ids: np.ndarray, num_bytes: int) -> None:
        if len(self._tokens) + len(ids) >= _SHARD_TOKENS and self._starts:
            self._write()
        self._starts.append(len(self._tokens))
        self._bytes.append(num_bytes)
        self._put(self._end_of_text)
        self._put(ids)

    def finish(self) -> list[str]:
        """Ends the stream and gives the names of all shards, in order."""
        self._put(self._end_of_text)
        self._write()
        return self._written

    def _put(self, tokens: np.ndarray) -> None:
        self._tokens.frombytes(tokens.astype(self._end_of_text.dtype).tobytes())

    def _write(self) -> None:
        name = f"{self._name}-{len(self._written):05d}.ztok"
        tokens = np.frombuffer(self._tokens, self._end_of_text.dtype)
        write_shard(self._folder / name, tokens, np.array(self._starts), np.array(self._bytes))
        self._written.append(name)
        self._begin()


def _explain(error: OSError, cache: Path) -> InputError:
    fix = "give another folder: --set data.cache=FOLDER"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{cache}: disk full; free some space or {fix}")
    return InputError(f"{error.filename or cache}: cannot be written: {error.strerror or error}; {fix}")

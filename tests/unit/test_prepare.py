"""Text to shards: the split, the cache, and what happens when it is interrupted."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zenspeed import config
from zenspeed.config import InputError
from zenspeed.data import on_disk
from zenspeed.data import prepare as module
from zenspeed.data.prepare import Prepared, prepare
from zenspeed.data.shards import TokenDataset
from zenspeed.recipe import Recipe

TEXTS = [f"Document {n} tells of {n * n} things. 第{n}篇文档讲了{n * 7}件事。" * (1 + n % 3) for n in range(200)]


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def recipe_for(source: Path, cache: Path, *overrides: str) -> Recipe:
    base = [
        "tokenizer.vocab_size=300",
        "model.context=16",
        "data.validation=0.1",
        f"data.cache={cache}",
        f"data.source={source}",
    ]
    return config.load(Recipe, overrides=[*base, *overrides])


def texts_of(prepared: Prepared, dataset: TokenDataset) -> list[str]:
    """The documents of a split, read back from its stream."""
    stream, end_of_text = dataset.read(0, dataset.num_tokens), prepared.tokenizer.end_of_text
    assert stream[0] == stream[-1] == end_of_text
    ends = np.flatnonzero(stream == end_of_text)
    assert ends[:-1].tolist() == dataset.document_starts.tolist()
    return [prepared.tokenizer.decode(stream[a + 1 : b]) for a, b in itertools.pairwise(ends)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", TEXTS)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# ---- what is made


def test_every_document_is_on_one_side_and_comes_back(rows: Path, cache: Path) -> None:
    prepared = prepare(recipe_for(rows, cache))
    train, validation = texts_of(prepared, prepared.train), texts_of(prepared, prepared.validation)
    assert sorted(train + validation) == sorted(TEXTS)
    assert 8 <= len(validation) <= 34  # 20 are expected
    assert prepared.train.document_bytes.tolist() == [len(t.encode()) for t in train]
    report = prepared.report
    assert report["train"]["num_documents"] == len(train)
    assert report["validation"]["num_bytes"] == sum(len(t.encode()) for t in validation)
    assert report["train"]["longest_document_tokens"] == max(len(prepared.tokenizer.encode(t)) for t in train)
    assert report == json.loads((prepared.folder / "prepared.json").read_text())


def test_duplicates_fall_on_the_same_side_and_order_does_not_matter(tmp_path: Path, rows: Path, cache: Path) -> None:
    first = prepare(recipe_for(rows, cache))
    held_out = set(texts_of(first, first.validation))
    again = prepare(recipe_for(write_rows(tmp_path / "twice.jsonl", TEXTS[::-1] + TEXTS), cache, "run.seed=9"))
    validation = texts_of(again, again.validation)
    assert set(validation) == held_out
    assert len(validation) == 2 * len(held_out)
    assert not held_out & set(texts_of(again, again.train))
    assert again.report["validation"]["num_duplicates"] == len(held_out)


def test_tokenizer_sees_training_documents_only(tmp_path: Path, cache: Path) -> None:
    """Every document has a character of its own; those of the held-out ones must stay unknown."""
    rows = write_rows(tmp_path / "own.jsonl", [f"{chr(0x4E00 + n)} is the sign of a document" for n in range(100)])
    prepared = prepare(recipe_for(rows, cache, "tokenizer.kind=char"))
    num_held_out = prepared.validation.num_documents
    assert prepared.report["validation"]["num_unknown_tokens"] == num_held_out > 0
    assert prepared.report["train"]["num_unknown_tokens"] == 0
    assert all(text == "� is the sign of a document" for text in texts_of(prepared, prepared.validation))
    assert prepared.tokenizer.vocab_size == len(set(" is the sign of a document")) + 100 - num_held_out + 2


def test_overlap_with_a_separate_validation_text_is_reported(rows: Path, tmp_path: Path, cache: Path) -> None:
    other = write_rows(tmp_path / "held_out.jsonl", [TEXTS[3], "something else"])
    prepared = prepare(recipe_for(rows, cache, f"data.validation={other}"))
    assert prepared.train.num_documents == 200
    assert prepared.report["validation_documents_also_in_train"] == 1


def test_two_documents_are_enough_and_one_is_not(tmp_path: Path, cache: Path) -> None:
    prepared = prepare(recipe_for(write_rows(tmp_path / "two.jsonl", TEXTS[:2]), cache, "tokenizer.kind=char"))
    assert (prepared.train.num_documents, prepared.validation.num_documents) == (1, 1)
    same = write_rows(tmp_path / "same.jsonl", TEXTS[:1] * 5)
    with pytest.raises(InputError, match=r"same\.jsonl: holds one document.*data.section_characters.*data.validation"):
        prepare(recipe_for(same, cache, "tokenizer.kind=char"))


@pytest.mark.parametrize("clean", ["data.clean.lowercase=false", "data.clean.lowercase=true"])
def test_shards_and_passes_of_a_large_corpus_give_the_same_stream(
    clean: str, rows: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is cleaned is read and cleaned once, and kept on disk meanwhile; another is read for each pass."""
    small = prepare(recipe_for(rows, cache, clean))
    read: list[str] = []
    before = module.documents
    monkeypatch.setattr(module, "documents", lambda config, source, *rest: read.append(source) or before(config, source, *rest))
    monkeypatch.setattr(module, "_SHARD_TOKENS", 500)
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 300)
    monkeypatch.setattr(on_disk, "HELD_CHARACTERS", 1000)
    large = prepare(recipe_for(rows, tmp_path / "other", clean))
    assert len(read) == (1 if clean.endswith("true") else 4)
    assert len(large.train.shards) > 5
    assert max(s.num_tokens for s in large.train.shards) <= 502
    for a, b in ((small.train, large.train), (small.validation, large.validation)):
        assert a.read(0, a.num_tokens).tolist() == b.read(0, b.num_tokens).tolist()
        assert a.document_starts.tolist() == b.document_starts.tolist()
        assert a.document_bytes.tolist() == b.document_bytes.tolist()


def test_tokenizer_of_a_huge_corpus_is_trained_on_a_sample(rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENIZER_CHARACTERS", sum(map(len, TEXTS)) // 4)
    seen: list[str] = []
    train_bpe = module.Tokenizer.train_bpe
    monkeypatch.setattr(module.Tokenizer, "train_bpe", lambda texts, size, **_: train_bpe(seen_by(texts, seen), size))
    prepared = prepare(recipe_for(rows, cache))
    train = texts_of(prepared, prepared.train)
    assert set(seen) < set(train)
    assert 0.1 < len(seen) / len(train) < 0.45


def seen_by(texts: Any, seen: list[str]) -> Any:
    for text in texts:
        seen.append(text)
        yield text


def test_folder_tokenizer_is_used_and_part_of_the_key(rows: Path, cache: Path, tmp_path: Path) -> None:
    own = prepare(recipe_for(rows, cache))
    folder = tmp_path / "tokenizer"
    own.tokenizer.save(folder)
    kind = ("tokenizer.kind=folder", f"tokenizer.folder={folder}")
    plain = config.load(Recipe, overrides=[f"data.source={rows}", f"data.cache={cache}", "model.context=16", *kind])
    used = prepare(plain)
    assert used.tokenizer.fingerprint == own.tokenizer.fingerprint
    module.Tokenizer.train_char(TEXTS).save(folder)
    assert prepare(plain).folder != used.folder


# ---- the cache


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the source was read again")

    monkeypatch.setattr(module, "documents", refuse)
    monkeypatch.setattr(module, "_file_hash", refuse)
    monkeypatch.setattr(module.Tokenizer, "encode_batch", refuse)


@pytest.mark.parametrize("source", ["rows", "python-docs"])
def test_hit_reads_nothing(source: str, rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenspeed.data.source.python_docs", lambda: iter(TEXTS))  # the true corpus takes seconds
    recipe = recipe_for(rows if source == "rows" else Path(source), cache)
    first = prepare(recipe)
    forbid_reading(monkeypatch)
    messages: list[str] = []
    began = time.perf_counter()
    second = prepare(recipe, messages.append)
    assert time.perf_counter() - began < 1
    assert not messages
    assert second.folder == first.folder
    assert second.report == first.report
    assert second.train.fingerprint == first.train.fingerprint
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_key_follows_content_and_settings_only(rows: Path, cache: Path, tmp_path: Path) -> None:
    first = prepare(recipe_for(rows, cache)).folder
    written = (first / "prepared.json").stat().st_mtime_ns
    moved = Path(shutil.copy(rows, tmp_path / "moved.jsonl"))
    os.utime(rows, (1, 1))
    for same in (recipe_for(rows, cache), recipe_for(moved, cache), recipe_for(rows, cache, "run.seed=5", "model.context=8")):
        assert prepare(same).folder == first
    assert (first / "prepared.json").stat().st_mtime_ns == written
    others = {prepare(recipe_for(rows, cache, o)).folder for o in ("tokenizer.vocab_size=301", "data.validation=0.2")}
    write_rows(rows, TEXTS[1:])
    others.add(prepare(recipe_for(rows, cache)).folder)
    assert len(others | {first}) == 4


def test_deleted_shard_is_made_again(rows: Path, cache: Path) -> None:
    recipe = recipe_for(rows, cache)
    first = prepare(recipe)
    (first.folder / "train-00000.ztok").unlink()
    again = prepare(recipe)
    assert again.train.fingerprint == first.train.fingerprint


@pytest.mark.parametrize("where", [3, 20, 5000])
def test_damaged_shard_is_named_and_the_fix_works(where: int, rows: Path, cache: Path) -> None:
    recipe = recipe_for(rows, cache)
    first = prepare(recipe)
    path = first.folder / "train-00000.ztok"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000\.ztok: .*delete it and run `zenspeed prepare` again"):
        prepare(recipe).train.read(0, 1)
    path.unlink()
    assert prepare(recipe).train.read(0, 9).tolist() == first.train.read(0, 9).tolist()


def test_changed_tokenizer_in_the_cache_is_noticed(rows: Path, cache: Path) -> None:
    recipe = recipe_for(rows, cache)
    folder = prepare(recipe).folder
    module.Tokenizer.train_char(TEXTS).save(folder / "tokenizer")
    with pytest.raises(InputError, match="not the one the data was made with; delete"):
        prepare(recipe)
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer.*delete .* and run `zenspeed prepare` again"):
        prepare(recipe)


# ---- interruptions

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from zenspeed import config
from zenspeed.data import on_disk
from zenspeed.data import prepare as module
from zenspeed.recipe import Recipe

how, here, overrides = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
name, original = ("write_shard", module.write_shard) if how == "kill" else ("_put_in_place", module._put_in_place)

def meet(*arguments):  # waits until the other process has come as far
    (here / f"met-{os.getpid()}").touch()
    while len(list(here.glob("met-*"))) < 2:
        time.sleep(0.01)
    original(*arguments)

def die(*arguments):
    original(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, die if how == "kill" else meet)
prepared = module.prepare(config.load(Recipe, overrides=overrides))
print(prepared.folder, prepared.train.fingerprint)
"""


def start(how: str, here: Path, rows: Path, cache: Path) -> subprocess.Popen[str]:
    overrides = ["tokenizer.vocab_size=300", "model.context=16", f"data.cache={cache}", f"data.source={rows}"]
    command = [sys.executable, "-c", PROGRAM, how, str(here), "data.validation=0.1", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_do_not_clash(rows: Path, cache: Path, tmp_path: Path) -> None:
    processes = [start("meet", tmp_path, rows, cache) for _ in range(2)]
    (out, errors), (other, other_errors) = (p.communicate(timeout=60) for p in processes)
    assert [p.returncode for p in processes] == [0, 0], errors + other_errors
    assert out == other != ""
    assert sorted(p.name for p in cache.iterdir()) == sorted([Path(out.split()[0]).name, "contents"])


def test_killed_in_the_middle_leaves_nothing_that_is_trusted(rows: Path, cache: Path, tmp_path: Path) -> None:
    process = start("kill", tmp_path, rows, cache)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = [p for p in cache.iterdir() if p.name != "contents"]
    assert len(left) == 1
    assert left[0].name.startswith(".building-")
    prepared = prepare(recipe_for(rows, cache))
    assert sorted(texts_of(prepared, prepared.train) + texts_of(prepared, prepared.validation)) == sorted(TEXTS)
    os.utime(left[0], (1, 1))
    prepare(recipe_for(rows, cache, "tokenizer.kind=char"))  # a day later the next build clears it away
    assert not left[0].exists()


# ---- errors


@pytest.mark.parametrize("name", ["write_shard", "write_atomically"])
def test_disk_full_names_folder_and_fix_and_leaves_nothing(
    name: str, rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(InputError, match=r"cache: disk full; free some space or .*--set data.cache="):
            prepare(recipe_for(rows, cache))
    assert not list(cache.glob(".*"))
    assert not list(cache.glob("*/prepared.json"))
    prepare(recipe_for(rows, cache))


def test_folder_not_writable(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(InputError, match=r"a file.*cannot be written.*--set data.cache="):
        prepare(recipe_for(rows, tmp_path / "a file" / "cache"))

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cache: cannot be written: Permission denied; .*--set data.cache="):
        prepare(recipe_for(rows, tmp_path / "cache"))


def test_context_longer_than_the_training_split(rows: Path, cache: Path) -> None:
    tokens = prepare(recipe_for(rows, cache)).train.num_tokens
    prepare(recipe_for(rows, cache, f"model.context={tokens - 1}"))
    with pytest.raises(
        InputError, match=rf"model.context: a sequence of {tokens} tokens is longer .* which has {tokens} tokens"
    ):
        prepare(recipe_for(rows, cache, f"model.context={tokens}"))


def test_vocabulary_larger_than_the_text_allows_leaves_nothing(rows: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size: 60000 tokens asked"):
        prepare(recipe_for(rows, cache, "tokenizer.vocab_size=60000"))
    assert [p.name for p in cache.iterdir()] == ["contents"]


def test_source_that_changes_meanwhile_is_refused(rows: Path, cache: Path) -> None:
    def change(message: str) -> None:
        write_rows(rows, [message, *TEXTS])

    with pytest.raises(InputError, match=r"rows\.jsonl: changed while it was read"):
        prepare(recipe_for(rows, cache), change)
    assert [p.name for p in cache.iterdir()] == ["contents"]

"""Shards: what is written is read, and no damage goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zenspeed.config import InputError
from zenspeed.data import shards
from zenspeed.data.shards import Shard, TokenDataset, token_dtype, write_shard


def write(path: Path, dtype: str = "uint16") -> Path:
    """Three documents of 4, 0 and 2 tokens, and the end of the stream."""
    write_shard(path, np.array([0, 11, 12, 13, 14, 0, 0, 21, 22, 0], dtype=dtype), np.array([0, 5, 6]), np.array([9, 0, 5]))
    return path


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    shard = Shard.open(write(tmp_path / "a.ztok", dtype))
    assert shard.tokens.dtype == dtype
    assert shard.tokens.tolist() == [0, 11, 12, 13, 14, 0, 0, 21, 22, 0]
    assert shard.document_starts.tolist() == [0, 5, 6]
    assert shard.document_bytes.tolist() == [9, 0, 5]
    assert (shard.num_tokens, shard.num_documents, shard.num_bytes) == (10, 3, 14)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ztok"]
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_type_on_disk_holds_every_token() -> None:
    assert token_dtype(65_536).itemsize == 2  # the highest number is 65,535
    assert token_dtype(65_537).itemsize == 4


def test_every_damaged_byte_is_found_and_the_file_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good.ztok").read_bytes()
    path = tmp_path / "bad.ztok"
    for n in range(len(good)):
        path.write_bytes(good[:n] + bytes([good[n] ^ 0x10]) + good[n + 1 :])
        with pytest.raises(InputError, match=r"bad\.ztok: .*delete it and run `zenspeed prepare` again"):
            TokenDataset.open([path]).read(0, 1)


def test_damage_to_the_header_is_found_at_open(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ztok")
    good = path.read_bytes()
    for n in range(80):
        path.write_bytes(good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :])
        with pytest.raises(InputError, match="not a token shard" if n < 8 else "header is damaged"):
            Shard.open(path)


@pytest.mark.parametrize("length", [0, 7, 79, 80, 100, -1])
def test_cut_off_or_grown_file_is_found_at_open(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.ztok")
    good = path.read_bytes()
    for content in (good[:length], good + b"\0"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.ztok: .*(cut off|bytes long, expected)"):
            Shard.open(path)


def test_other_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "VERSION", 7)
    path = write(tmp_path / "a.ztok")
    monkeypatch.undo()
    with pytest.raises(InputError, match="version 7, this program reads 1"):
        Shard.open(path)


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.ztok: cannot be read"):
        Shard.open(tmp_path / "a.ztok")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.ztok")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(path, np.zeros(5, np.uint16), np.array([0]), np.array([1]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ztok"]


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[TokenDataset, np.ndarray]:
    """Shards of 1 to 7 tokens, with the stream they make."""
    paths, stream = [], []
    for n, length in enumerate([3, 1, 7, 2]):
        tokens = np.arange(10 * n, 10 * n + length, dtype=np.uint16)
        paths.append(tmp_path / f"{n}.ztok")
        write_shard(paths[-1], tokens, np.array([0, length // 2]), np.array([n, 100]))
        stream.append(tokens)
    return TokenDataset.open(paths), np.concatenate(stream)


def test_stream_is_read_across_shards(dataset: tuple[TokenDataset, np.ndarray]) -> None:
    data, stream = dataset
    assert data.num_tokens == len(stream) == 13
    for start in range(14):
        for stop in range(start, 14):
            assert data.read(start, stop).tolist() == stream[start:stop].tolist()
    for start, stop in ((-1, 2), (3, 2), (0, 14)):
        with pytest.raises(IndexError):
            data.read(start, stop)


def test_documents_are_numbered_across_shards(dataset: tuple[TokenDataset, np.ndarray]) -> None:
    data, _ = dataset
    assert data.document_starts.tolist() == [0, 1, 3, 3, 4, 7, 11, 12]
    assert data.document_bytes.tolist() == [0, 100, 1, 100, 2, 100, 3, 100]
    assert (data.num_documents, data.num_bytes) == (8, 406)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = TokenDataset.open([write(tmp_path / "a.ztok")])
    assert first.fingerprint == TokenDataset.open([write(tmp_path / "b.ztok")]).fingerprint
    assert first.fingerprint != TokenDataset.open([write(tmp_path / "c.ztok", "uint32")]).fingerprint

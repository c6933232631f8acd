"""Numbers on disk, counted a part at a time, are what numpy counts at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zenspeed.data import numbers, on_disk
from zenspeed.data.numbers import num_common, num_distinct, slices
from zenspeed.data.on_disk import NumbersOnDisk, TextsOnDisk


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_BLOCK", 64)
    monkeypatch.setattr(on_disk, "_BLOCK", 64)
    monkeypatch.setattr(on_disk, "_READ_BYTES", 100)
    monkeypatch.setattr(numbers, "_PART", 100)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("count", [0, 1, 64, 1000])
def test_what_is_appended_is_there(count: int, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 2**63, count, np.uint64)
    kept = NumbersOnDisk(np.uint64, tmp_path)
    for value in values:
        kept.append(int(value))
    found = kept.finish()
    assert np.array_equal(found, values) and found.dtype == np.uint64
    assert [found[part].tolist() for part in slices(count)] == [values[i : i + 64].tolist() for i in range(0, count, 64)]
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.usefixtures("small_parts")
def test_texts_come_back_in_order_and_anywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = ["", *("ä語🙂 x"[: int(n)] * int(m) for n, m in rng.integers(0, 60, (300, 2))), ""]
    kept = TextsOnDisk(tmp_path)
    for text in texts:
        kept.append(text)
    kept.finish()
    assert list(kept) == texts == [kept[i] for i in range(len(kept))]
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.usefixtures("small_parts")
def test_counts_are_those_of_numpy() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 800, count).astype(np.uint64) * np.uint64(2**40 + 1) for count in (1000, 300))

    def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
        return (values[part] for part in slices(len(values)))

    assert num_distinct(lambda: blocks(a)) == len(np.unique(a))
    assert num_common(lambda: blocks(b), lambda: blocks(a)) == int(np.isin(b, a).sum())
    assert num_common(lambda: blocks(a), lambda: blocks(b)) == int(np.isin(a, b).sum())
    assert num_distinct(lambda: blocks(a[:0])) == 0

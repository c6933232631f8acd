"""Splits and folds: shares, no row twice, equal keys on one side, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from zenspeed.config import InputError
from zenspeed.data.reading import Row
from zenspeed.data.split import SplitOptions, folds, split_rows

ROWS: list[Row] = [
    {
        "id": i,
        "text": f"text {i % 900}",
        "label": "rare" if i % 20 == 0 else "often",
        "author": i % 37,
        "day": f"2024-{i % 12 + 1:02d}-01",
    }
    for i in range(1000)
]


@pytest.mark.parametrize(("kind", "by"), [("random", None), ("stratified", "label"), ("grouped", "author"), ("time", "day")])
def test_every_row_is_in_one_part_whatever_the_order(kind: str, by: str | None) -> None:
    options = SplitOptions(kind=kind, by=by, validation=0.2, test=0.1)  # type: ignore[arg-type]
    parts = split_rows(ROWS, options)
    assert sorted(row["id"] for part in parts for row in part) == list(range(1000))  # type: ignore[type-var]
    assert 140 <= len(parts.validation) <= 260
    assert 60 <= len(parts.test) <= 140
    key = {"random": "text", "stratified": "text"}.get(kind, by)
    assert key
    sides = [{row[key] for row in part} for part in parts]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    shuffled = random.Random(0).sample(ROWS, 1000)
    again = split_rows(shuffled, options)
    assert {row["id"] for row in again.test} == {row["id"] for row in parts.test}
    if kind != "time":
        other = split_rows(ROWS, SplitOptions(kind=kind, by=by, validation=0.2, test=0.1, seed=2))  # type: ignore[arg-type]
        assert {row["id"] for row in other.test} != {row["id"] for row in parts.test}


def test_stratified_keeps_shares_of_labels() -> None:
    parts = split_rows(ROWS, SplitOptions(kind="stratified", by="label", validation=0.2, test=0.2))
    assert [sum(row["label"] == "rare" for row in part) for part in parts] == pytest.approx([30, 10, 10], abs=2)


def test_time_order() -> None:
    parts = split_rows(ROWS, SplitOptions(kind="time", by="day", validation=0.2, test=0.2))
    days = [sorted({str(row["day"]) for row in part}) for part in parts]
    assert days[0][-1] < days[1][0] <= days[1][-1] < days[2][0]
    numbers: list[Row] = [{"text": "", "t": str(n)} for n in range(9, 109)]
    assert {int(str(r["t"])) for r in split_rows(numbers, SplitOptions(kind="time", by="t")).test} == set(range(99, 109))


def test_what_cannot_be_split_is_said() -> None:
    with pytest.raises(InputError, match=r"no column 'lable'.*label"):
        split_rows(ROWS, SplitOptions(kind="stratified", by="lable"))
    with pytest.raises(InputError, match="part of 2 rows would be empty"):
        split_rows(ROWS[:2])
    with pytest.raises(InputError, match="needs `by`"):
        SplitOptions(kind="grouped")
    with pytest.raises(InputError, match="together below 1"):
        SplitOptions(validation=0.5, test=0.5)
    with pytest.raises(InputError, match="3 groups do not make 5 folds"):
        folds(None, [0, 1, 2] * 5)


def test_stratified_folds_are_as_even_as_scikit_learns_definition() -> None:
    labels = ["a"] * 53 + ["b"] * 22 + ["c"] * 8
    made = folds(labels, k=5, repeats=3, seed=7)
    assert len(made) == 15
    for repeat in range(3):
        tests = [fold.test for fold in made[5 * repeat : 5 * repeat + 5]]
        assert sorted(np.concatenate(tests)) == list(range(83))
        for label in "abc":
            counts = [sum(labels[i] == label for i in test) for test in tests]
            assert max(counts) - min(counts) <= 1
        assert max(map(len, tests)) - min(map(len, tests)) <= 1
    for fold in made:
        assert sorted([*fold.train, *fold.test]) == list(range(83))
    assert not np.array_equal(made[0].test, made[5].test)
    assert all(np.array_equal(x.test, y.test) for x, y in zip(made, folds(labels, k=5, repeats=3, seed=7), strict=True))
    assert not np.array_equal(made[0].test, folds(labels, k=5, seed=8)[0].test)


def test_grouped_folds_keep_groups_whole_and_labels_even() -> None:
    groups = [i % 40 for i in range(800)]
    labels = [int(g % 4 == 0) for g in groups]
    made = folds(labels, groups, k=5)
    for fold in made:
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.test}
        assert Counter(labels[i] for i in fold.test) == {0: 120, 1: 40}
    assert sorted(i for fold in made for i in fold.test) == list(range(800))
    few = folds(None, [0, 0, 0, 1, 2], k=3)
    assert all(len(fold.test) for fold in few)
    apart = folds(["a", "b", "c"], [0, 1, 2], k=3)  # no label is shared, so every fold is as even as any other
    assert all(len(fold.test) == 1 for fold in apart)

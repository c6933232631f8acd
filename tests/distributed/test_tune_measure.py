"""Range test and noise scale are the same on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from zenspeed.config import load
from zenspeed.parallel.mesh import start_world
from zenspeed.recipe import Recipe
from zenspeed.tune.measure import _measure


def measured(folder: str) -> dict[str, Any]:
    keys = [
        "model={layers: 1, width: 16, heads: 2, context: 16}", "tokenizer.vocab_size=300", "train.precision=fp32",
        "train.batch_size=8", "train.micro_batch_size=4", "train.steps=10", "train.lanes=1", f"run.folder={folder}/run",
        f"data.source={folder}/c.txt", f"data.cache={folder}/cache",
    ]  # fmt: skip
    return _measure(load(Recipe, None, keys), start_world(), seeds=2, steps=30)


def test_measurements_do_not_depend_on_ranks(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\n\n".join(list(topics.values())[:8]), encoding="utf-8")
    (one,), both = run_ranks(1, measured, str(tmp_path)), run_ranks(2, measured, str(tmp_path))
    for other in both:
        for a, b in zip(one["curves"], other["curves"], strict=True):
            assert a[:20] == pytest.approx(b[:20], rel=1e-4)  # before the rate is so high that 1e-7 becomes large
        assert other["noise"].critical == pytest.approx(one["noise"].critical, rel=0.05)
    assert both[0]["rate"] == both[1]["rate"]
    assert one["curves"][0][-1] < one["curves"][0][0]
    assert one["noise"].critical > 0

"""A text larger than the memory that the process is given; the same with gigabytes: benchmarks/larger_than_memory.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_text_of_twice_the_memory_is_prepared(tmp_path: Path) -> None:
    """What is held at once is scaled to a fiftieth, and so is the limit: a text that was held would end the process."""
    script = [sys.executable, str(ROOT / "benchmarks" / "larger_than_memory.py"), "--folder", str(tmp_path)]
    sizes = ["--gigabytes", "0.15", "--limit-mib", "72", "--scale", "0.02", "--tokenizer", "char"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*script, *sizes], env=environment, capture_output=True, text=True, timeout=500)
    if "no memory cgroup can be made" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout[done.stdout.index("{") :])
    assert record["gigabytes"] * 1e9 > 1.9 * record["limit_mib"] * 2**20
    assert record["held_mib"] < record["limit_mib"]

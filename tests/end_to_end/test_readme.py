"""The commands of the README run, in its order, in one folder, on a small model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.conftest import Cli, environment
from tests.end_to_end.test_tasks import write

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_commands_run(cli: Cli, tiny: list[str], corpus: Path, tmp_path: Path) -> None:
    text = corpus.read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    (tmp_path / "held_out.txt").write_text(text[:5000], encoding="utf-8")
    write(tmp_path / "reviews.csv", 90, 1)
    write(tmp_path / "more_reviews.csv", 30, 2)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    seen = set()
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
            continue
        assert words[0] == "zenspeed", f"the README has a command that nothing tests: {words}"
        arguments = words[1:]
        seen.add(arguments[0])
        if "train" in arguments or "prepare" in arguments:
            # a small model, and the embedded corpus replaced by the small one: what is tested is that the command works
            arguments += [*tiny, *(["--set", "data.source=corpus.txt"] if "recipes/demo.yaml" in arguments else [])]
        arguments = [re.sub(r"train\.minutes=\d+", "train.minutes=0.1", a) for a in arguments]
        if arguments[0] == "resume":
            arguments = [re.sub(r"train\.minutes=[\d.]+", "train.minutes=0.2", a) for a in arguments]
        cli(*arguments)
    assert seen >= {"train", "resume", "evaluate", "generate", "prepare", "info", "launch"}


def test_python_runs(corpus: Path, tmp_path: Path) -> None:
    """The lines of Python, in a process of their own, for a shorter time."""
    (tmp_path / "corpus.txt").write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    small = 'model={"layers": 1, "width": 32, "heads": 2, "context": 32}, run={"folder": "run"}, data={"cache": "cache", '
    code = code.replace('"minutes": 2', '"steps": 2').replace("data={", small)
    code += "print(type(model).__name__, tokenizer.vocab_size)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Transformer ")

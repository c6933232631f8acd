"""The commands of the README run, in its order, in one folder, on a small model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.end_to_end.conftest import Cli
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

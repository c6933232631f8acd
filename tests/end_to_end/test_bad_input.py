"""Bad input: one line with the place and the fix, exit code 2, nothing half written and nothing lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli, command, environment
from zenspeed.checkpoint import Checkpoint, find_checkpoint, list_checkpoints
from zenspeed.runlog import read_events


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, f"more than a line:\n{done.stderr}"
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {done.stderr}"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train.stps=3"], ["train.stps", "did you mean train.steps"]),
        (["optim.learning_rate=1e-3"], ["did you mean optim.lr"]),
        (["train.steps=many"], ["train.steps", "'many'"]),
        (["train.steps=0"], ["train.steps", "greater than or equal to 1"]),
        (["model.width=100", "model.heads=7"], ["100 / 7 = 14.29"]),
        (["train.batch_size=8", "train.micro_batch_size=3"], ["8 = 3 × 2.67 × 1"]),
        (["tokenizer.vocab_size=500000"], ["tokenizer.vocab_size"]),
        (["model.context=2000000"], ["model.context"]),
        (["run.folder=/proc/nothing"], ["/proc/nothing"]),
        (["train.steps=5", "train.minutes=1"], ["give one of them"]),
        (["nonsense"], ["section.key=value"]),
    ],
)  # fmt: skip
def test_recipe_values(sets: list[str], words: list[str], cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    more = [part for s in sets for part in ("--set", s)]
    kept = [
        t
        for pair in zip(tiny[::2], tiny[1::2], strict=True)
        for t in pair
        if pair[1].split("=")[0] not in {s.split("=")[0] for s in sets}
    ]
    steps = [] if any(s.startswith("train.") and "batch" not in s for s in sets) else ["--set", "train.steps=2"]
    refused(cli("train", corpus, *kept, *steps, *more, code=None), *words)
    assert not (tmp_path / "runs").exists()


def test_recipe_file(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data:\n  source: x.txt\noptim:\n  learning_rate: 1e-3\n")
    refused(cli("train", recipe, code=None), "r.yaml:4", "optim.learning_rate", "did you mean optim.lr")
    recipe.write_text("data: [1, 2\n")
    refused(cli("train", recipe, code=None), "r.yaml", "not YAML")
    refused(cli("train", "missing.yaml", code=None), "missing.yaml", "no such recipe")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("corpu.txt", None, ["did you mean"]),
        ("empty.txt", b"", ["empty"]),
        ("latin.txt", "Zürich ".encode("latin-1") * 500, ["UTF-8", "byte 1"]),
        ("binary.txt", b"text\0\x01\x02" * 500, ["binary"]),
    ],
)
def test_sources(name: str, content: bytes | None, words: list[str], cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("here\n")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(cli("train", name, *tiny, code=None), name, *words)


@pytest.fixture(scope="module")
def finished(corpus: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    sets = ["--set", "train.steps=20", "--set", "checkpoint.every=10", "--set", f"run.folder={folder / 'out'}"]
    subprocess.run(command("train", corpus, *tiny, *sets), env=environment(), check=True, capture_output=True)
    return folder / "out"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_a_run_is_not_overwritten(run: Path, cli: Cli, corpus: Path, tiny: list[str]) -> None:
    refused(cli("train", corpus, *tiny, "--set", f"run.folder={run}", code=None), "holds a run already", "zenspeed resume")


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.json", "checkpoint.json"])
def test_damaged_checkpoint_is_named_and_the_last_good_one_taken(file: str, run: Path, cli: Cli) -> None:
    path = find_checkpoint(run) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    named = cli("resume", run, "--checkpoint", "step-00000020", code=None)
    refused(named, file, f"--checkpoint {list_checkpoints(run / 'checkpoints')[0].name}")
    done = cli("resume", run, "--set", "train.steps=20")
    assert file in done.stderr and "going on from" in done.stderr and "step-00000010" in done.stderr
    assert Checkpoint(find_checkpoint(run)).step == 20
    assert [e["event"] for e in read_events(run)] == ["checkpoint skipped"]


def test_disk_full_while_saving(run: Path, tmp_path: Path) -> None:
    """The system refuses to write more than 40 kB a file, as a full disk would: the checkpoints before stay good."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # noqa: E731
    done = subprocess.run(
        command("resume", run, "--set", "train.steps=40"),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
    )
    refused(done, "checkpoint of step 30", "the last good one is step-00000020")
    assert [c.name for c in list_checkpoints(run / "checkpoints")] == ["step-00000010", "step-00000020"]
    assert Checkpoint(find_checkpoint(run)).step == 20
    assert not list((run / "checkpoints").glob("*.partial"))


def test_verbs_on_wrong_folders_and_values(run: Path, cli: Cli, tmp_path: Path) -> None:
    refused(cli("resume", "nowhere", code=None), "nowhere", "no such run")
    refused(cli("generate", tmp_path, code=None), "no complete checkpoint")
    refused(cli("evaluate", run, "--data", "nothing.txt", code=None), "nothing.txt")
    refused(cli("generate", run, "--temperature", "-1", code=None), "temperature")
    refused(cli("generate", run, "--top-p", "1.5", code=None), "top_p")
    refused(cli("generate", run, "--checkpoint", "step-7", code=None), "step-00000020")
    refused(cli("launch", "-n", "2", "compare", run, code=None), "launch runs")


def test_changed_data_is_not_resumed(cli: Cli, tiny: list[str], tmp_path: Path, corpus: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    cli("train", text, *tiny, "--set", "train.steps=2", "--set", "run.folder=out")
    text.write_text(corpus.read_text(encoding="utf-8") + "\n\nMore of it." * 50, encoding="utf-8")
    refused(cli("resume", "out", "--set", "train.steps=4", code=None), "other data")

"""Runs with too little memory, and with activations computed again."""

from __future__ import annotations

import itertools
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.end_to_end.conftest import Cli
from zenspeed.config import InputError, load
from zenspeed.machine import resident_bytes
from zenspeed.memory import MemoryLimit, container_bytes, is_out_of_memory
from zenspeed.recipe import Recipe
from zenspeed.runlog import read_metrics
from zenspeed.tasks.base import Task
from zenspeed.training import train

SAID = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


def tiny_recipe(corpus: Path, cache: Path, folder: Path, *sets: str) -> Recipe:
    keys = [
        "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "tokenizer.vocab_size=320",
        "train.precision=fp32", "evaluate.every=0", "sample.max_tokens=4", "log.tensorboard=false", "train.steps=6",
        "train.batch_size=8", f"data.source={corpus}", f"data.cache={cache}", f"run.folder={folder}",
    ]  # fmt: skip
    return load(Recipe, None, [*keys, *sets])


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def test_a_run_goes_on_with_halved_micro_batches(
    corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the third update on micro-batches of more than two do not fit: losses are those of a run that begins with two."""
    plain = train(tiny_recipe(corpus, cache, tmp_path / "plain", "train.micro_batch_size=2", "train.lanes=1"))
    loss, calls = Task.loss, itertools.count()

    def no_room(task: Task, module: nn.Module, batch: Any) -> Tensor:
        if next(calls) >= 2 and len(batch.targets) > 2:
            raise RuntimeError(SAID)
        return loss(task, module, batch)

    monkeypatch.setattr(Task, "loss", no_room)
    folder = train(tiny_recipe(corpus, cache, tmp_path / "run", "train.micro_batch_size=8", "train.lanes=1")).folder
    assert losses(folder) == pytest.approx(losses(plain.folder), rel=1e-6)
    assert losses(folder)[-1] < losses(folder)[0]
    told = [record for record in read_metrics(folder) if "out_of_memory" in record]
    assert [(t["step"], t["micro_batch_size"], t["accumulation"]) for t in told] == [(3, 4, 2), (3, 2, 4)]
    assert "made again, and gone on with, by micro-batches of 2, accumulation 4" in capsys.readouterr().out.replace("\n", " ")


def test_where_nothing_is_left_to_halve_the_fix_is_named(
    corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(task: Task, module: nn.Module, batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Task, "loss", no_room)
    recipe = tiny_recipe(corpus, cache, tmp_path / "run", "train.micro_batch_size=2")
    with pytest.raises(InputError, match=r"step 1: too little memory for micro-batches of 1.*train\.recompute=true"):
        train(recipe)


def test_a_limit_of_memory_is_kept(cli: Cli, tiny: list[str], corpus: Path) -> None:
    """A real limit: a micro-batch of 192 × 256 needs more than is allowed, a part of it does not."""
    sets = [
        "model.width=64", "model.context=256", "model.qk_norm=false", "train.batch_size=192", "train.micro_batch_size=192",
        "train.steps=2", "train.lanes=1", "train.memory=0.65", "run.folder=run", "sample.prompts=[]",
    ]  # fmt: skip
    said = cli("train", corpus, *tiny, *(part for key in sets for part in ("--set", key))).stdout
    assert "step 1: too little memory for micro-batches of 192; made again" in said


def test_a_limit_below_what_is_used_is_refused(corpus: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.memory: 0\.01 GiB, but the process holds .* give more"):
        train(tiny_recipe(corpus, cache, tmp_path / "run", "train.memory=0.01"))


def test_what_will_be_needed_later_is_asked_for_before_training(corpus: Path, cache: Path, tmp_path: Path) -> None:
    """Adam's two states and a copy of all for a checkpoint, of which no forward or backward knows."""
    held = resident_bytes() / 2**30
    recipe = tiny_recipe(corpus, cache, tmp_path / "run", "model.width=512", "optim.name=adamw", f"train.memory={held + 0.7}")
    with pytest.raises(InputError, match=r"train\.memory: .* GiB are needed for optimizer states and a copy for checkpoints"):
        train(recipe.model_copy(update={"model": recipe.model.model_copy(update={"layers": 12})}))
    assert not losses(tmp_path / "run")


def test_a_limit_says_what_will_not_fit() -> None:
    limit = MemoryLimit(64.0, torch.device("cpu"))
    assert limit.check(2**30, "a copy") is None
    with pytest.raises(InputError, match=r"train\.memory: 6\d\.\d+ GiB are needed for a copy, 64\.00 are there; give"):
        limit.check(64 * 2**30, "a copy")


def test_an_evaluation_that_does_not_fit_says_so(
    corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        torch.empty(2**40)  # more than any limit

    monkeypatch.setattr("zenspeed.tasks.language.LanguageTask.evaluate", no_room)
    with pytest.raises(InputError, match=r"step 6: too little memory to evaluate 8 sequences at a time.*evaluate\.batch_size"):
        train(tiny_recipe(corpus, cache, tmp_path / "run", "train.memory=64", "train.micro_batch_size=8"))


def test_the_limit_ends_with_the_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with MemoryLimit(64.0, torch.device("cpu")):
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
        with pytest.raises(RuntimeError) as error:
            torch.empty(2**36)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_what_a_container_may_use(tmp_path: Path) -> None:
    """Of both versions of control groups, the least of a group and those around it."""
    own = tmp_path / "cgroup"
    for version, lines, base, name in (
        (2, "0::/a/b\n", tmp_path / "v2", "memory.max"),
        (1, "4:memory:/a/b\n3:cpuset:/\n", tmp_path / "v1" / "memory", "memory.limit_in_bytes"),
    ):
        (base / "a" / "b").mkdir(parents=True)
        (base / "a" / "b" / name).write_text("max\n" if version == 2 else str(2**62))
        (base / "a" / name).write_text("123456789\n")
        own.write_text(lines)
        assert container_bytes(tmp_path / f"v{version}", own) == 123456789
    own.write_text("0::/\n")
    assert container_bytes(tmp_path / "none", own) is None


@pytest.mark.parametrize("lanes", [1, 2])
def test_recomputing_changes_nothing_but_memory(corpus: Path, cache: Path, tmp_path: Path, lanes: int) -> None:
    """Bit for bit, dropout included, whose random numbers come out the same the second time."""
    sets = [f"train.lanes={lanes}", "train.micro_batch_size=4", "model.dropout=0.2", "train.steps=4"]
    kept = train(tiny_recipe(corpus, cache, tmp_path / "kept", *sets))
    again = train(tiny_recipe(corpus, cache, tmp_path / "again", *sets, "train.recompute=true"))
    assert losses(again.folder) == losses(kept.folder)

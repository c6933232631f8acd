"""Data and runs in object storage: S3's interface, spoken by a server of this machine."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

import zenspeed
from tests.distributed.ranks import run_ranks
from zenspeed.checkpoint import Checkpointer
from zenspeed.cli import app
from zenspeed.cli.app import run_here
from zenspeed.config import load
from zenspeed.data.files import source_files
from zenspeed.errors import InputError
from zenspeed.recipe import Recipe
from zenspeed.run import begun, open_run
from zenspeed.runlog import read_metrics
from zenspeed.runstore import RunStore
from zenspeed.storage import Store

TEXT = "\n\n".join(f"the quick brown fox number {n} jumps over the lazy dog and runs away" for n in range(60))


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket; this process stands in a folder of its own."""
    import s3fs

    for name, value in keys(service).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = tmp_path.name.replace("_", "-").lower()[-50:].strip("-")
    urllib.request.urlopen(urllib.request.Request(f"{service}/{name}", method="PUT"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    at(tmp_path / "first", monkeypatch)
    return f"s3://{name}"


def keys(service: str) -> dict[str, str]:
    names = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_DEFAULT_REGION": "us-east-1"}
    return names | {"AWS_ENDPOINT_URL": service, "AWS_MAX_ATTEMPTS": "1"}


def at(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine: a folder that holds nothing of the run."""
    machine.mkdir(exist_ok=True)
    monkeypatch.chdir(machine)


def recipe(bucket: str, *sets: str) -> Recipe:
    tiny = ["model.layers=1", "model.width=16", "model.heads=2", "model.context=16", "tokenizer.vocab_size=270",
            "train.batch_size=2", "train.precision=fp32", "evaluate.every=0", "sample.max_tokens=1", "log.tensorboard=false",
            "checkpoint.every=2", "data.section_characters=80",
            f"run.folder={bucket}/run", f"data.source={bucket}/text.txt", "data.cache=cache"]  # fmt: skip
    return load(Recipe, None, [*tiny, *sets])


def test_a_run_goes_on_on_another_machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(bucket).put(tmp_path / "text.txt", "text.txt")
    zenspeed.train(recipe(bucket, "train.steps=6", "run.folder=whole"))
    whole = read_metrics(tmp_path / "first/whole")

    zenspeed.train(recipe(bucket, "train.steps=6"))
    store = RunStore(f"{bucket}/run")
    assert list(store.checkpoints()) == ["step-00000004", "step-00000006"], "as many as in the folder"
    store.forget_after(5)
    store.store.put(tmp_path / "text.txt", "checkpoints/step-00000008.killed/rank-00000.json")  # no manifest: not complete
    with pytest.raises(InputError, match="holds a run already; go on with it: zenspeed resume s3://"):
        at(tmp_path / "other", monkeypatch)
        zenspeed.train(recipe(bucket, "train.steps=6"))

    at(tmp_path / "second", monkeypatch)
    wanted = recipe(bucket, "train.steps=6").run
    found = begun(wanted.folder, (), None, wanted.storage)
    assert found is not None and found.checkpoint == Path("runs/run/checkpoints/step-00000004")
    zenspeed.train(found.recipe, resume=found.checkpoint)
    resumed = read_metrics(tmp_path / "second/runs/run")
    assert [r["loss"] for r in resumed if "loss" in r] == [r["loss"] for r in whole if "loss" in r]

    at(tmp_path / "third", monkeypatch)
    opened = open_run(run_here(Path(f"{bucket}/run")) or Path())  # as the command line names it
    assert opened.checkpoint.step == 6
    assert Path("runs/run/report.html").exists() and Path("runs/run/tokenizer").exists()
    assert not any("killed" in name for name in store.store.names())
    Path("runs/run/recipe.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="runs/run: holds another run than"):
        RunStore(f"{bucket}/run").fetch(Path("runs/run"))


def test_launch_goes_on_with_a_run_in_storage(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zenspeed launch -n 2 resume s3://…` watches the folder that the run was fetched to; `report` finds it as well."""
    Store(bucket).put(tmp_path / "text.txt", "text.txt")
    zenspeed.train(recipe(bucket, "train.steps=2"))
    at(tmp_path / "second", monkeypatch)
    app(["launch", "-n", "2", "resume", f"{bucket}/run", "--set", "train.steps=4"], standalone_mode=False)
    assert {path.name for path in Path().iterdir()} <= {"runs", "cache"}, "no folder s3:"
    assert (Path("runs/run/health/rank-00001.beat")).exists() and "step-00000004" in RunStore(f"{bucket}/run").checkpoints()
    at(tmp_path / "third", monkeypatch)
    app(["report", f"{bucket}/run"], standalone_mode=False)
    assert Path("runs/run/report.html").exists()
    sets = ["--set", "train.steps=12", "--set", "checkpoint.every=4"]
    with pytest.raises(InputError, match="runs are broken in a folder of this machine"):
        app(["chaos", "--folder", f"{bucket}/chaos", *sets], standalone_mode=False)


def save_apart(folder: str, url: str | None, environment: dict[str, str]) -> bool | str:
    """A checkpoint of ranks that each have a folder of their own."""
    import os

    import torch
    import torch.distributed as dist

    os.environ.update(environment)
    own = Path(folder) / str(dist.get_rank()) / "checkpoints"
    own.mkdir(parents=True, exist_ok=True)
    store = RunStore(url) if url else None
    try:
        checkpointer = Checkpointer(own, store=store, meet_seconds=0.3)
    except InputError as error:
        return str(error)
    part = torch.arange(4.0) + 4 * dist.get_rank()
    start = 4 * dist.get_rank()
    checkpointer.save(3, [("w", "weight", torch.Size([8]), start, start + 4, part)], {}, {"step": 3}, wait=True)
    return bool(list(own.rglob("rank-*")))


def test_ranks_without_a_folder_in_common(bucket: str, service: str, tmp_path: Path) -> None:
    """They meet in storage, where the checkpoint is whole; without storage they say so before the first step."""
    from zenspeed.checkpoint import Checkpoint

    assert run_ranks(2, save_apart, str(tmp_path), f"{bucket}/run", keys(service)) == [True, False]
    RunStore(f"{bucket}/run").fetch(tmp_path / "fetched")
    for place in (tmp_path / "fetched", tmp_path / "0"):
        assert Checkpoint(place / "checkpoints/step-00000003").weights()["w"].tolist() == list(range(8))
    for said in run_ranks(2, save_apart, str(tmp_path / "bare"), None, {}):
        assert "is not one folder for all: rank 1 does not see it" in str(said)


def test_data_are_fetched_once_and_again_when_they_change(bucket: str, tmp_path: Path) -> None:
    store = Store(bucket)
    for name in ("data/a.txt", "data/more/b.jsonl.gz", "data/c.bin"):
        store.put(tmp_path / "text.txt", name)
    cache = tmp_path / "cache"
    assert [p.name for p in source_files(f"{bucket}/data", cache=cache)] == ["a.txt", "b.jsonl.gz"]
    assert [p.name for p in source_files(f"{bucket}/data/*.bin", cache=cache)] == ["c.bin"]
    (first,) = source_files(f"{bucket}/data/a.txt", cache=cache)
    assert first.read_text() == TEXT
    before = first.stat().st_mtime_ns
    assert source_files(f"{bucket}/data/a.txt", cache=cache)[0].stat().st_mtime_ns == before
    (tmp_path / "text.txt").write_text("new", encoding="utf-8")
    store.put(tmp_path / "text.txt", "data/a.txt")
    assert source_files(f"{bucket}/data/a.txt", cache=cache)[0].read_text() == "new"
    with pytest.raises(InputError, match=f"{bucket}/data/none.txt: is not there"):
        source_files(f"{bucket}/data/none.txt", cache=cache)
    with pytest.raises(InputError, match="no object matches"):
        source_files(f"{bucket}/data/*.csv", cache=cache)


@pytest.mark.parametrize(
    ("url", "variables", "message"),
    [
        ("s3://", {}, "names no bucket; expected s3://bucket/path"),
        ("zz://bucket/x", {}, "zz://bucket/x: cannot be reached: Protocol not known"),
        ("gs://bucket/x", {}, "install it: pip install gcsfs"),
        ("s3://nowhere/x", {}, "s3://nowhere/x/text.txt: is not there; is the bucket right"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "is the service there"),
    ],
)
def test_what_cannot_be_reached_is_named(
    url: str, variables: dict[str, str], message: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with pytest.raises(InputError, match=message):
        Store(url).put(tmp_path / "text.txt", "text.txt")


def test_a_wrong_place_is_refused_with_the_recipe() -> None:
    with pytest.raises(InputError, match="storage: runs/x is no address"):
        load(Recipe, None, ["run.storage=runs/x"])


def test_what_failed_in_passing_is_tried_again(bucket: str, tmp_path: Path) -> None:
    store, failures = Store(bucket, (0.0, 0.0)), [TimeoutError("slow"), ConnectionError("reset")]

    def act() -> Any:
        if failures:
            raise failures.pop()
        return "done"

    assert store._try("x", act) == "done"

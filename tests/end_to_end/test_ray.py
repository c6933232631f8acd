"""A Ray cluster of two nodes, both this machine: run where the extra `ray` is installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import Cli, hold_at
from zenspeed.errors import InputError
from zenspeed.launch.command import Options, start
from zenspeed.runlog import read_events, read_metrics

cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    there = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    there.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", there.address)
        yield
    there.shutdown()


@pytest.mark.usefixtures("cluster")
def test_losses_are_those_of_one_process(
    cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"data: {{source: {corpus}}}\n", encoding="utf-8")
    arguments = ["train", "r.yaml", *tiny, "--set", "train.steps=5", "--set", "train.lanes=1"]
    cli(*arguments, "--set", "run.folder=one")
    assert (
        start(Options(on="ray", num_processes=2, settings=("placement=SPREAD",)), [*arguments, "--set", "run.folder=ray"]) == 0
    )
    one, two = ([r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("one", "ray"))
    assert two == pytest.approx(one, abs=1e-5)
    with pytest.raises(InputError, match="3 workers need 3 CPU, the cluster has 2"):
        start(Options(on="ray", num_processes=3), [*arguments, "--set", "run.folder=more"])
    with pytest.raises(InputError, match="training failed"):
        start(Options(on="ray", num_processes=2), [*arguments, "--set", "run.folder=bad", "--set", "data.source=nowhere.txt"])


@pytest.mark.usefixtures("cluster")
def test_parameter_server(
    cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server and a worker are killed on the way: each step once, and the losses of data parallel."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"data: {{source: {corpus}}}\n", encoding="utf-8")
    arguments = ["train", "r.yaml", *tiny, "--set", "train.steps=120", "--set", "train.lanes=1", "--set", "checkpoint.every=50"]
    cli(*arguments, "--set", "run.folder=one")
    victims = (tmp_path / "ray", 20, "ServerActor.run", 50, "WorkerActor.run")
    threading.Thread(target=kill_at, args=victims, daemon=True).start()
    served = [*arguments, "--set", "run.folder=ray", "--set", "parallel.mode=parameter_server"]
    assert start(Options(on="ray", num_processes=2, max_restarts=1), served) == 0
    said = capfd.readouterr().err
    assert "parameter server 0 died; it is started again" in said and "died; it is started again" in said.partition("worker")[2]
    one, two = ([(r["step"], r["loss"]) for r in read_metrics(tmp_path / name) if "lr" in r] for name in ("one", "ray"))
    assert [step for step, _ in two] == list(range(1, 121))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)
    with pytest.raises(InputError, match=r"training failed: .*nowhere\.txt"):
        start(Options(on="ray", num_processes=2), [*served, "--set", "run.folder=bad", "--set", "data.source=nowhere.txt"])


def kill_at(run: Path, *steps_and_names: int | str) -> None:
    """Kills (−9) the newest process of a name when the run has come to a step, one pair after the other."""
    for step, name in zip(steps_and_names[::2], steps_and_names[1::2], strict=True):
        while not (run / "metrics.jsonl").exists() or max((r["step"] for r in read_metrics(run)), default=0) < int(step):
            time.sleep(0.02)
        named = [p for p in psutil.process_iter(["cmdline"]) if str(name) in " ".join(p.info["cmdline"] or ())]
        max(named, key=lambda p: p.create_time()).kill()


@pytest.mark.usefixtures("cluster")
def test_a_held_worker_is_named_and_all_begin_anew(
    corpus: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"data: {{source: {corpus}}}\n", encoding="utf-8")
    sets = [
        f"--set={key}"
        for key in (
            "train.steps=200",
            "checkpoint.every=10",
            "guard.step_seconds=4",
            "guard.start_seconds=30",
            "run.folder=run",
        )
    ]
    threading.Thread(target=hold_at, args=(tmp_path / "run", 1, 30), daemon=True).start()
    assert start(Options(on="ray", num_processes=2, max_restarts=2), ["train", "r.yaml", *tiny, *sets]) == 0
    said = [event["why"] for event in read_events(tmp_path / "run") if event["event"] == "hung"]
    assert said and all("the ranks wait for rank 1 at " in why and "rank 0 at" not in why for why in said), said
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "lr" in r] == list(range(1, 201))

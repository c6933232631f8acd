"""A Ray cluster of two nodes, both this machine: run where the extra `ray` is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli
from zenspeed.errors import InputError
from zenspeed.launch.command import Options, start
from zenspeed.runlog import read_metrics

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

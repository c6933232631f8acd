"""Jobs for clusters: batch scripts of Slurm, manifests of Kubernetes held against their published schemas, what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from zenspeed.errors import InputError
from zenspeed.launch.command import Options, command_of, start
from zenspeed.launch.rendezvous import Rendezvous, interface_of, own_address, settings, told

RECIPE = "run: {folder: runs/My_Run}\ntrain: {steps: 3}\n"
TRAIN = ("train", "recipe.yaml", "--set", "data.source=it's.txt")

# Fields of kubeflow.org/v1 as kubeflow-training 1.9.4 (PyPI, Apache-2.0) declares them; the pod's are those of Kubernetes.
PYTORCHJOB = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"},
    "runPolicy": {
        "activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "schedulingPolicy", "suspend",
        "ttlSecondsAfterFinished",
    },
    "replica": {"replicas", "restartPolicy", "template"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def submit(on: str, *settings: str, arguments: tuple[str, ...] = TRAIN, dry_run: bool = True, **more: Any) -> int:
    return start(Options(on=on, settings=settings, dry_run=dry_run, **more), arguments)


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a program of the cluster, on PATH."""
    (folder / name).write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_script_of_slurm_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As bash reads it, with stand-ins for the programs of Slurm: every quote and variable comes to the launcher as meant."""
    program(folder, "sbatch", 'echo "7;cluster"; cp "$2" script', monkeypatch)
    program(folder, "scontrol", "printf 'one\\ntwo\\n'", monkeypatch)
    program(folder, "srun", 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"', monkeypatch)
    program(folder, "python", 'printf "%s\\n" "$@" > arguments; pwd > where; echo "$SET_UP" > set_up', monkeypatch)
    assert submit("slurm", f"python={folder}/python", "setup=export SET_UP=yes", "time=1:00:00", "option=--qos=long",
                  dry_run=False, nodes="1:4", num_processes=2, max_restarts=3) == 0  # fmt: skip
    assert "scancel 7" in capfd.readouterr().out
    text = (folder / "script").read_text()
    for line in ("--nodes=1-4", "--time=1:00:00", "--qos=long", "--job-name=my-run", f"--output={folder}/runs/My_Run/"):
        assert f"#SBATCH {line}" in text
    variables = os.environ | {"SLURM_JOB_ID": "1030", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "one,two"}
    subprocess.run(["bash", "script"], check=True, env=variables)
    words = (folder / "arguments").read_text().split("\n")
    assert words[:7] == ["-m", "zenspeed", "launch", "-n", "2", "--max-restarts", "3"]
    assert words[7:13] == ["--nnodes", "1:3", "--rdzv-endpoint", "one:29506", "--rdzv-id", "1030"]
    assert words[13:] == ["train", f"{folder}/recipe.yaml", "--set", "data.source=it's.txt", "--resume", ""]
    assert ((folder / "where").read_text().strip(), (folder / "set_up").read_text()) == (str(folder), "yes\n")
    (folder / "recipe.yaml").unlink()
    done = subprocess.run(["bash", "script"], check=False, env=variables, capture_output=True, text=True)
    assert (done.returncode, "put it on a folder that all machines share" in done.stderr) == (2, True)


def manifests(capsys: pytest.CaptureFixture[str], *settings: str, **more: Any) -> list[dict[str, Any]]:
    assert submit("kubernetes", "image=hub/zenspeed:1", *settings, **more) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def same(kind: str, manifest: Mapping[str, Any]) -> None:
    """Every field is one of the schema's, of its type, and nothing the schema asks for is missing."""
    assert getattr(models, kind).from_dict(manifest).to_dict() == manifest


ALL = ("volume=shared", "size=10Gi", "storage_class=nfs", "gpus=2", "secret=keys", "memory=8Gi")


def test_a_jobset_keeps_the_published_schema(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, claim, job = manifests(capsys, *ALL, nodes="3", num_processes=2, max_restarts=5)
    same("IoK8sApiCoreV1ConfigMap", recipe)
    same("IoK8sApiCoreV1PersistentVolumeClaim", claim)
    same("JobsetV1alpha2JobSet", job)
    assert recipe["data"]["recipe.yaml"] == RECIPE
    work = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (work["parallelism"], job["spec"]["failurePolicy"]["maxRestarts"]) == (3, 5)
    container = work["template"]["spec"]["containers"][0]
    assert container["command"][-4:] == ["--rdzv-endpoint", "my-run-node-0-0.my-run:29500", "--rdzv-id", "my-run"]
    assert container["args"] == ["train", "/recipe/recipe.yaml", "--set", "data.source=it's.txt", "--resume"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_a_pytorchjob_keeps_the_published_schema(capsys: pytest.CaptureFixture[str]) -> None:
    job = manifests(capsys, *ALL, "kind=pytorchjob", nodes="1:3")[-1]
    spec = job["spec"]
    assert set(job) <= PYTORCHJOB[""] and set(spec) <= PYTORCHJOB["spec"] and set(spec["runPolicy"]) <= PYTORCHJOB["runPolicy"]
    assert {name: part["replicas"] for name, part in spec["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 2}
    for part in spec["pytorchReplicaSpecs"].values():
        assert set(part) == PYTORCHJOB["replica"]
        same("IoK8sApiCoreV1PodTemplateSpec", part["template"])
    assert "my-run-master-0:29500" in spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]


def test_pods_with_object_storage_need_no_volume(capsys: pytest.CaptureFixture[str]) -> None:
    job = manifests(capsys, "secret=keys", arguments=("train", "recipe.yaml", "--set", "run.folder=s3://b/mine"))[-1]
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert [v["name"] for v in pod["volumes"]] == ["recipe"]
    assert (job["metadata"]["name"], pod["containers"][0]["envFrom"]) == ("mine", [{"secretRef": {"name": "keys"}}])


def test_kubectl_gets_the_manifests(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program(folder, "kubectl", "cat > applied\n[ ! -e refuse ] || { echo 'no such kind' >&2; exit 1; }", monkeypatch)
    assert submit("kubernetes", "image=i", "volume=v", dry_run=False) == 0
    assert [m["kind"] for m in yaml.safe_load_all((folder / "applied").read_text())] == ["ConfigMap", "JobSet"]
    assert "kubectl -n default delete jobset my-run" in capsys.readouterr().out
    (folder / "refuse").touch()
    with pytest.raises(InputError, match="kubectl refused the manifests: no such kind"):
        submit("kubernetes", "image=i", "volume=v", dry_run=False)


@pytest.mark.parametrize(
    ("on", "settings", "more", "message"),
    [
        ("slrm", (), {}, "did you mean slurm"),
        ("slurm", ("partitoin=a",), {}, "did you mean partition"),
        ("slurm", ("cpus=many",), {}, "--with cpus=many: cpus: 'many' is not valid"),
        ("slurm", ("cpus",), {}, "expected KEY=VALUE"),
        ("slurm", (), {"nodes": "4:1"}, "1 ≤ MIN ≤ MAX"),
        ("slurm", (), {"nodes": "two"}, "expected a number or MIN:MAX"),
        ("slurm", (), {"node_rank": 1}, "leave out the options that name them"),
        ("slurm", (), {"rdzv": {"endpoint": "a:1"}}, "leave out the options that name them"),
        ("slurm", (), {"arguments": ("train", "text.txt")}, "runs train with a recipe"),
        ("slurm", (), {"arguments": ("train", "none.yaml")}, "none.yaml: no such file"),
        ("slurm", (), {"arguments": ("train", "recipe.yaml", "--set", "run.folder=null")}, "--set run.folder=runs/mine"),
        ("kubernetes", (), {}, "image"),
        ("kubernetes", ("image=i",), {}, "run.folder: runs/My_Run: pods have no folder in common"),
        ("kubernetes", ("image=i", "size=1Gi"), {}, "name it: --with volume=NAME"),
        ("kubernetes", ("image=i", "volume=v"), {"arguments": ("train", "recipe.yaml", "--set", "data.source=/data/a.txt")},
         "data.source: /data/a.txt: is not on the volume, which is mounted at /work"),
        ("slurm", (), {"arguments": (*TRAIN, "--set", "parallel.mode=parameter_server")}, "is placed by --on ray alone"),
        ("slurm", (), {"dry_run": False}, "there is no sbatch here"),
        ("kubernetes", ("image=i", "volume=v"), {"dry_run": False}, "there is no kubectl here"),
    ],
)  # fmt: skip
def test_what_is_refused(
    on: str, settings: tuple[str, ...], more: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=message):
        submit(on, *settings, **more)


def test_what_sbatch_refuses_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder, "sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1", monkeypatch)
    with pytest.raises(InputError, match="invalid partition specified: x"):
        submit("slurm", "partition=x", dry_run=False)


def test_settings_without_a_cluster_are_refused() -> None:
    with pytest.raises(InputError, match="belong to --on"):
        start(Options(settings=("cpus=1",)), TRAIN)


# Machines that meet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("worker-1", "expected HOST:PORT"),
        ("worker-1:99999", "expected HOST:PORT"),
        ("no-such-host.invalid:29400", "no-such-host.invalid is not known here"),
    ],
)
def test_a_wrong_place_to_meet_is_refused(endpoint: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(Options(nodes="2", rdzv={"endpoint": endpoint}), TRAIN)


def test_machines_that_do_not_come_are_waited_for_no_longer_than_asked() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{s.getsockname()[1]}"
    with pytest.raises(InputError, match="fewer than 2 machines came within 1 s; start the same command on the others"):
        start(Options(nodes="2", rdzv={"endpoint": endpoint}, rdzv_timeout=1), TRAIN)


def test_what_torch_says_of_a_place_that_does_not_answer_is_said_in_a_line() -> None:
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

    with (
        pytest.raises(InputError, match=r"--rdzv h:1: cannot be reached: timed out; start the command on that machine"),
        told(Rendezvous(nodes="2", endpoint="h:1")),
    ):
        raise RendezvousConnectionError("see inner exception") from TimeoutError("timed out")


def test_own_address_and_interface() -> None:
    assert own_address("localhost:29400") == "127.0.0.1"
    assert interface_of("127.0.0.1") is None and interface_of("203.0.113.9") is None
    assert settings(Rendezvous(nodes="1:2", endpoint="127.0.0.1:1", timeout_seconds=9))["join_timeout"] == 9
    assert settings(Rendezvous(nodes="2", endpoint="h:1", backend="static", node_rank=1))["rank"] == 1


def test_machines_that_come_and_go_start_training_so_that_it_goes_on() -> None:
    for options, again in (
        (Options(nodes="1:4"), True),
        (Options(nodes="4", max_restarts=1), True),
        (Options(nodes="4"), False),
    ):
        assert (command_of(options, TRAIN)[-1] == "--resume") == again


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'zenspeed\[ray\]'"):
        submit("ray", dry_run=False)

"""The launcher with real processes: scripts, modules, `import deepspeed`, machines behind a stand-in for ssh, and deaths."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zenspeed.errors import InputError
from zenspeed.launch.command import Options, command_of, machines
from zenspeed.launch.hosts import choose, limit, read_hostfile
from zenspeed.launch.rendezvous import Rendezvous
from zenspeed.launch.ssh import Ssh, commands, variables

Cli = Callable[..., subprocess.CompletedProcess[str]]
SERVED = ["--set", "parallel.mode=parameter_server"]
NOWHERE = ["python-docs", "--set", "run.folder=/proc/x", "--set", "train.steps=2"]
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

NOTE = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
out = {k: os.environ.get(k) for k in names} | {"argv": sys.argv[1:], "name": __name__}
open(f"out-{os.environ['RANK']}.json", "w").write(json.dumps(out))
"""
DIE = """
import os, pathlib, signal, sys, time
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    print("a line before", file=sys.stderr)
    pathlib.Path("died").touch()
    raise RuntimeError("the disk of rank one is full")
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(1000):
    time.sleep(0.1)
    pathlib.Path("alive").touch()
"""
DEEPSPEED = """
import importlib.metadata, importlib.util, json, os
assert importlib.util.find_spec("deepspeed") is not None
import deepspeed
import deepspeed.comm as dist
from deepspeed import DeepSpeedEngine, comm, get_accelerator, zero
from deepspeed.accelerator import get_accelerator as same
from deepspeed.checkpoint.utils import clone_tensors_for_torch_save
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.runtime.lr_schedules import WarmupLR
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, zero_wrapper_for_fp_tensor_constructor
from deepspeed.utils import logger, safe_get_full_grad, set_z3_leaf_modules
import deepspeed.checkpointing
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int)
parser.add_argument("--size", type=int)
args = deepspeed.add_config_arguments(parser).parse_args()
deepspeed.init_distributed()
assert deepspeed.runtime.lr_schedules.VALID_LR_SCHEDULES and deepspeed.checkpointing.checkpoint
version = importlib.metadata.version("deepspeed")
out = {"version": version, "same": version == deepspeed.__version__, "local_rank": args.local_rank, "size": args.size,
       "world": dist.get_world_size(), "file": deepspeed.__file__, "config": args.deepspeed_config}
open(f"out-{dist.get_rank()}.json", "w").write(json.dumps(out))
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def results(folder: Path, ranks: int) -> list[dict[str, object]]:
    return [json.loads((folder / f"out-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str, name: str = "script.py") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


@pytest.fixture
def fake_ssh(tmp_path: Path) -> dict[str, str]:
    """A folder on PATH whose `ssh` runs the command here and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(
        f'#!/bin/sh\nwhile [ "${{1#-}}" != "$1" ]; do echo "$1 $2" >> {tmp_path}/options; shift 2; done\n'
        f'echo "$1" >> {tmp_path}/called\nshift\nexec sh -c "$*"\n',
        encoding="utf-8",
    )
    (folder / "ssh").chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | QUIET


def test_a_script_with_its_arguments(cli: Cli, script: Callable[[str], str], tmp_path: Path) -> None:
    cli("launch", "-n", "2", script(NOTE), "-n", "5", "--set", "a=b", **QUIET)
    first, second = results(tmp_path, 2)
    assert first["argv"] == second["argv"] == ["-n", "5", "--set", "a=b"]
    assert (second["RANK"], second["WORLD_SIZE"], first["name"]) == ("1", "2", "__main__")


def test_a_module(cli: Cli, script: Callable[[str, str], str], tmp_path: Path) -> None:
    script(NOTE, "my_module.py")
    cli("launch", "--num_gpus", "1", "-m", "my_module", "--flag", **QUIET, PYTHONPATH=str(tmp_path))
    assert results(tmp_path, 1)[0]["argv"] == ["--flag"]


def test_import_deepspeed_is_zenspeed_in_launched_processes_only(
    cli: Cli, script: Callable[[str], str], tmp_path: Path
) -> None:
    cli("launch", "--as-deepspeed", "-n", "2", script(DEEPSPEED), "--size", "3", "--deepspeed_config", "x.json", **QUIET)
    first, second = results(tmp_path, 2)
    shim = cli("shim").stdout.strip()
    assert str(first["file"]).startswith(shim) and first["same"]
    assert tuple(map(int, str(first["version"]).split("+")[0].split("."))) >= (0, 18, 2)
    assert (first["local_rank"], second["local_rank"], second["size"], second["world"]) == (0, 1, 3, 2)
    assert second["config"] == "x.json"
    code = "import importlib.util as u; print(u.find_spec('deepspeed') and u.find_spec('deepspeed').origin)"
    outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shim not in outside
    assert (
        shim
        in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": shim}
        ).stdout
    )


def test_a_rank_that_dies_ends_all_and_is_named(cli: Cli, script: Callable[[str], str], tmp_path: Path) -> None:
    """Within 30 s, even one that does not listen."""
    done = cli("launch", "-n", "2", script(DIE), "--stubborn", code=1, **QUIET)
    assert (tmp_path / "alive").stat().st_mtime - (tmp_path / "died").stat().st_mtime < 30
    said = done.stderr[done.stderr.index("error: rank 1 ended with code 1") :]
    assert "a line before" in said and "RuntimeError: the disk of rank one is full" in said


def test_machines_over_ssh(cli: Cli, script: Callable[[str], str], tmp_path: Path, fake_ssh: dict[str, str]) -> None:
    (tmp_path / "hosts").write_text("one slots=2\ntwo slots=4 # the new one\nthree slots=1\n", encoding="utf-8")
    options = ["--hostfile", "hosts", "--include", "two:0@one:1", "--master_addr", "127.0.0.1", "--ssh_port", "2222"]
    cli("launch", *options, "--master_port", str(free_port()), script(NOTE), "it's", "a b", "$HOME", **fake_ssh)
    first, second = results(tmp_path, 2)
    assert first["argv"] == ["it's", "a b", "$HOME"]
    assert (first["LOCAL_RANK"], second["LOCAL_RANK"], second["LOCAL_WORLD_SIZE"]) == ("0", "0", "1")
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("1", "0")
    assert sorted((tmp_path / "called").read_text().split()) == ["one", "two"]
    assert "-p 2222" in (tmp_path / "options").read_text()


def test_a_machine_that_fails_ends_the_others(
    cli: Cli, script: Callable[[str], str], tmp_path: Path, fake_ssh: dict[str, str]
) -> None:
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n", encoding="utf-8")
    options = ["--hostfile", "hosts", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    done = cli("launch", *options, script(DIE), code=1, **fake_ssh)
    assert (tmp_path / "alive").stat().st_mtime - (tmp_path / "died").stat().st_mtime < 30
    assert "error: rank 1 ended with code 1" in done.stderr and "error: machine two ended with code 1" in done.stderr


def test_a_failure_is_tried_again(cli: Cli, script: Callable[[str], str], tmp_path: Path) -> None:
    text = "import pathlib, sys\np = pathlib.Path('tries')\nn = len(p.read_text()) if p.exists() else 0\n"
    cli("launch", "--max-restarts", "2", script(text + "p.write_text('x' * (n + 1))\nsys.exit(n < 2)"), **QUIET)
    assert (tmp_path / "tries").read_text() == "xxx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch"], "got nothing"),
        (["launch", "compare"], "launch runs"),
        (["launch", "nowhere.py"], "nowhere.py: no such file"),
        (["launch", "--num_nodes", "2", "train"], "needs --hostfile"),
        (["launch", "--nnodes", "2", "train"], "--rdzv-endpoint HOST:PORT"),
        (["launch", "--nnodes", "2", "--node_rank", "1", "train"], "--master_addr"),
        (["launch", "--nnodes", "x", "--rdzv-endpoint", "h:1", "train"], "expected a number or MIN:MAX"),
        (["launch", "--hostfile", "nowhere", "train"], "nowhere: no such file"),
        (["launch", "--include", "localhost", "-n", "2", "train"], "--include and --exclude choose the slots"),
        (["launch", "--unknown", "train"], "No such option"),
        (["launch", "-n", "2", "train", *NOWHERE], "/proc/x: cannot be written"),
        (["launch", "-n", "2", "train", *NOWHERE, *SERVED], "cannot be written"),
        (["launch", "--nnodes", "1", "--rdzv", "127.0.0.1:29444", "train", *NOWHERE], "cannot be written"),
        (["launch", "--rdzv", "h:1", "train", *SERVED], "workers meet at their servers, not at --rdzv"),
        (["launch", "--nnodes", "2", "train", *SERVED], "workers meet at their servers"),
        (["launch", "--min-processes", "2", "train", *SERVED], "--min-processes: a parameter server goes on with any number"),
    ],
)
def test_bad_options(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli(*arguments, code=2, COLUMNS="200")
    assert message in done.stderr


# Parts ------------------------------------------------------------------------------------------------------------------


def hosts_of(tmp_path: Path, text: str) -> dict[str, list[int]]:
    (tmp_path / "hosts").write_text(text, encoding="utf-8")
    return read_hostfile(tmp_path / "hosts")


def test_hostfile_and_filters(tmp_path: Path) -> None:
    hosts = hosts_of(tmp_path, "# machines\n\nworker-1 slots=2\nworker-2   slots=3\n")
    assert hosts == {"worker-1": [0, 1], "worker-2": [0, 1, 2]}
    assert choose(hosts, include="worker-2:0,2@worker-1") == {"worker-1": [0, 1], "worker-2": [0, 2]}
    assert list(choose(hosts, include="worker-2@worker-1")) == ["worker-1", "worker-2"]
    assert choose(hosts, exclude="worker-1:0") == {"worker-1": [1], "worker-2": [0, 1, 2]}
    assert choose(hosts, exclude="worker-1") == {"worker-2": [0, 1, 2]}
    assert limit(hosts, 1, 1) == {"worker-1": [0]}


@pytest.mark.parametrize(
    ("text", "include", "exclude", "message"),
    [
        ("", "", "", "names no machine"),
        ("a slots=x", "", "", ":1: 'a slots=x' is not a machine"),
        ("a slots=0", "", "", "N above 0"),
        ("a slots=1\na slots=2", "", "", ":2: a: given twice"),
        ("worker-1 slots=1", "worker-2", "", "did you mean worker-1"),
        ("a slots=2", "a:2", "", "a has no slot 2, it has 0 to 1"),
        ("a slots=2", "a:x", "", "'x' are no slots"),
        ("a slots=2", "a", "a", "both given"),
        ("a slots=2", "", "a", "leaves no slot"),
        ("a slots=2", "a:0@a:1", "", "named twice"),
    ],
)
def test_wrong_hostfiles_and_filters(tmp_path: Path, text: str, include: str, exclude: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(hosts_of(tmp_path, text), include, exclude)


def test_too_many_machines_or_slots(tmp_path: Path) -> None:
    hosts = hosts_of(tmp_path, "a slots=2")
    for num_nodes, num_slots, message in ((2, None, "has 1 machines"), (None, 3, "a has 2 slots")):
        with pytest.raises(InputError, match=message):
            limit(hosts, num_nodes, num_slots)


def test_what_is_passed_on_to_other_machines(tmp_path: Path) -> None:
    file = tmp_path / ".deepspeed_env"
    file.write_text("# mine\nexport MY_NAME=me\nOTHER='a b'\n", encoding="utf-8")
    environment = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_x", "PYTHONPATH": "/a", "HOME": "/h", "SOME_API_KEY": "k"}
    assert variables(environment, [file, tmp_path / "none"]) == {
        "NCCL_DEBUG": "INFO",
        "PYTHONPATH": "/a",
        "MY_NAME": "me",
        "OTHER": "a b",
    }
    line = commands({"u@h": [0, 3], "g": [1]}, Ssh(), ["s.py", "a'b"], {"X": "1 2"})[0]
    assert line[:4] == ["ssh", "-o", "BatchMode=yes", "u@h"]
    assert "--master-addr h " in line[-1] and "CUDA_VISIBLE_DEVICES=0,3" in line[-1] and "'X=1 2'" in line[-1]


def test_commands_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "s.py").touch()
    path = str(tmp_path / "s.py")
    shim = Options(as_deepspeed=True)
    assert command_of(shim, [path, "a"])[2:] == [path, "--local_rank=${local_rank}", "a"]
    assert command_of(Options(as_deepspeed=True, local_rank_argument=False), [path, "a"])[2:] == [path, "a"]
    assert command_of(Options(module=True, as_deepspeed=True), ["m", "a"])[2:] == ["-m", "m", "--local_rank=${local_rank}", "a"]
    assert command_of(shim, ["train", "x"])[1:] == ["-m", "zenspeed", "train", "x"]
    assert machines(Options(num_processes=3)) is None
    assert Rendezvous(nodes="1:4").span() == (1, 4)

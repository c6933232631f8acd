"""Several machines over ssh without a password: the same launcher is started on each, with the same folder and interpreter.

A machine ends its processes when its standard input closes, so nothing is left behind when this one ends, in whatever way.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zenspeed.launch.hosts import Slots
from zenspeed.launch.local import GRACE_SECONDS

PASSED_ON = ("NCCL_", "GLOO_", "UCX_", "OMP_", "MKL_", "TORCH_", "PYTHON", "CUDA_DEVICE_", "HF_HOME", "MLFLOW_TRACKING_URI")
"""Beginnings of the variables that other machines get; keys and tokens are not among them, since commands can be seen."""


@dataclass(frozen=True)
class Ssh:
    """How to reach the machines."""

    port: int | None = None
    master_address: str | None = None
    """Where the processes meet; None: the first machine's name."""
    master_port: int = 29500


def variables(environment: Mapping[str, str], files: Sequence[Path] = ()) -> dict[str, str]:
    """What is passed on of `environment`, and the NAME=VALUE lines of `files` (DeepSpeed's `.deepspeed_env`)."""
    out = {k: v for k, v in environment.items() if k.startswith(PASSED_ON)}
    for file in files:
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                name, equals, value = line.strip().partition("=")
                if equals and not name.startswith("#"):
                    out[name.removeprefix("export ").strip()] = value.strip().strip("\"'")
    return out


def commands(hosts: Slots, ssh: Ssh, arguments: Sequence[str], passed_on: Mapping[str, str]) -> list[list[str]]:
    """One ssh command per machine. `arguments` are those of `zenspeed launch` that name what is run."""
    first = next(iter(hosts)).rpartition("@")[2]
    address = ssh.master_address or ("127.0.0.1" if first == "localhost" else first)
    out = []
    for number, (host, slots) in enumerate(hosts.items()):
        options = [
            *("--nnodes", str(len(hosts)), "--node-rank", str(number), "-n", str(len(slots))),
            *("--master-addr", address, "--master-port", str(ssh.master_port), "--end-with-input"),
        ]
        settings = {**passed_on, "CUDA_VISIBLE_DEVICES": ",".join(map(str, slots))}
        line = ["env", *(f"{k}={v}" for k, v in settings.items()), sys.executable, "-m", "zenspeed", "launch", *options]
        remote = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join([*line, *arguments])}"
        port = ["-p", str(ssh.port)] if ssh.port else []
        out.append(["ssh", "-o", "BatchMode=yes", *port, host, remote])
    return out


def run(hosts: Slots, lines: Sequence[Sequence[str]]) -> int:
    """Runs all commands; when one fails the others are ended. The exit code of the first that failed, or 0."""
    running = {host: subprocess.Popen(line, stdin=subprocess.PIPE) for host, line in zip(hosts, lines, strict=True)}
    try:
        while any(p.poll() is None for p in running.values()):
            failed = [(host, p.returncode) for host, p in running.items() if p.poll() not in (None, 0)]
            if failed:
                return _failed(*failed[0])
            time.sleep(0.1)
        return next((_failed(host, p.returncode) for host, p in running.items() if p.returncode), 0)
    except KeyboardInterrupt:
        return 130
    finally:
        _end(list(running.values()))


def _failed(host: str, code: int) -> int:
    why = "; is there passwordless ssh to it? try: ssh -o BatchMode=yes " + host + " true" if code == 255 else ""
    print(f"error: machine {host} ended with code {code}; the others were stopped{why}", file=sys.stderr, flush=True)
    return code if code > 0 else 128 - code


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Closes every input, which ends the machines; kills the ssh of one that does not answer."""
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    until = time.monotonic() + GRACE_SECONDS + 5
    for process in processes:
        try:
            process.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def environment_files() -> list[Path]:
    """Where DeepSpeed's launcher looks for further variables."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    return [Path.home() / name, Path.cwd() / name]

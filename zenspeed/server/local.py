"""Servers that are started with a run, as processes of this machine, and started again when they end."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from zenspeed.errors import InputError
from zenspeed.runlog import make_folder

START_SECONDS = 60.0
MAX_RESTARTS = 20


class LocalServers:
    """`count` servers at free ports of this machine, for the length of a `with` block.

    They keep their journals in `folder`; one that dies is started again at the same port and goes on from its journal. They end
    when this process does, however it ends: they read from a pipe that closes with it.
    """

    def __init__(self, count: int, folder: Path, key_file: Path | None = None) -> None:
        self.folder, self.restarts = folder, 0
        self._secret = tempfile.TemporaryDirectory(prefix="zenspeed-key-") if key_file is None else None
        if self._secret is not None:
            key_file = Path(self._secret.name) / "key"
            key_file.touch(mode=0o600)
            key_file.write_text(secrets.token_hex(32), encoding="ascii")
        assert key_file is not None
        self.key_file = key_file
        self._processes: list[subprocess.Popen[str]] = []
        self._ports = [0] * count
        self._ended = threading.Event()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._ports]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def __enter__(self) -> LocalServers:
        try:
            self._processes = [self._spawn(index) for index in range(len(self._ports))]
            for index, process in enumerate(self._processes):
                self._ports[index] = _port_of(process)
        except BaseException:
            self.__exit__()
            raise
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._secret is not None:
            self._secret.cleanup()

    def _spawn(self, index: int) -> subprocess.Popen[str]:
        place = self.folder / str(index)
        make_folder(place)
        options = ["--listen", f"127.0.0.1:{self._ports[index]}", "--key-file", self.key_file, "--folder", place]
        command = [sys.executable, "-m", "zenspeed", "parameter-server", *map(str, options), "--end-with-input"]
        # A session of its own: Ctrl-C is for the workers, which end the servers when they have saved.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            for index, process in enumerate(self._processes):
                if process.poll() in (None, 0) or self._ended.is_set():
                    continue
                self.restarts += 1
                if self.restarts > MAX_RESTARTS:
                    return
                print(
                    f"parameter server {index} ended with {process.returncode}; it is started again",
                    file=sys.stderr,
                    flush=True,
                )
                self._processes[index] = self._spawn(index)
                time.sleep(0.1 * self.restarts)


def _port_of(process: subprocess.Popen[str]) -> int:
    """The port a server says it listens at."""
    assert process.stdout is not None
    found = re.match(r"listening at .*:(\d+)$", process.stdout.readline().strip())
    if found is None:
        process.wait(timeout=START_SECONDS)
        raise InputError(f"a parameter server ended with code {process.returncode} before it could listen")
    return int(found[1])

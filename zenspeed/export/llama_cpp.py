"""llama.cpp as a runtime of the gate, in a process of its own: `llama_cpp` may live in another Python than ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.config import InputError
from zenspeed.export.probe import Probe
from zenspeed.export.runtimes import Runtime

PROGRAM = Path(__file__).with_name("read_gguf.py")


def find_python(given: Path | None) -> Path | None:
    """A Python that imports `llama_cpp`: `given`, else ours; None where ours does not.

    Raises:
        InputError: `given` does not.
    """
    python = given or Path(sys.executable)
    try:
        done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True)
        said = (done.stderr.strip().splitlines() or [""])[-1]
    except OSError as error:
        done, said = None, str(error)
    if done is not None and done.returncode == 0:
        return python
    if given is None:
        return None
    raise InputError(f"--runtime-python {given}: does not import llama_cpp: {said}; install llama-cpp-python there")


class LlamaCpp(Runtime):
    """Opens a GGUF file; `close` ends the process.

    Raises:
        InputError: llama.cpp does not open it.
    """

    def __init__(self, python: Path, path: Path, context: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zenspeed-gguf-")
        self._errors = Path(self._folder.name) / "stderr"
        # As text, not as a file: a file's folder, with modules of these names, would come before packages.
        command = [str(python), "-c", PROGRAM.read_text(encoding="utf-8"), str(path), str(context)]
        pipe, errors = subprocess.PIPE, self._errors.open("w")
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, encoding="utf-8")
        errors.close()
        self.version = str(self._read())

    def output(self, probe: Probe) -> np.ndarray:
        path = Path(self._folder.name) / "logits.npy"
        self._ask(logits=probe.tokens.tolist(), to=str(path))
        return np.load(path)

    def greedy(self, probe: Probe, num: int) -> list[int]:
        return self._ask(greedy=probe.tokens.tolist(), num=num)

    def encode(self, text: str) -> list[int]:
        return self._ask(encode=text)

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        return self._ask(chat=list(messages))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code, said = self._process.wait(), self._errors.read_text(encoding="utf-8", errors="replace").strip()
            self._folder.cleanup()
            raise InputError(f"export: not kept: llama.cpp ended with {code}: {(said.splitlines() or ['no word'])[-1][:300]}")
        return json.loads(line)

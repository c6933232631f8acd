"""`zenspeed serve` as docs/deploy.md has it: the official client, a worker that is killed, an end that loses no answer."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import httpx
import openai
import psutil
import pytest

from tests.end_to_end.conftest import command, environment
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.text.tokenizer import Tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "out"
    tokenizer = Tokenizer.train("bpe", list(topics.values())[:8], 300)
    model = Transformer(ModelConfig(preset="llama", layers=2, width=64, heads=4, context=4096), tokenizer.vocab_size)
    model.init_weights(1)
    to_huggingface(model, path, tokenizer.end_of_text)
    tokenizer.save(path)
    return path


class Server:
    """A running `zenspeed serve`."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            command(*words), env=environment(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(pattern, "".join(self.printed)):
                return found
            time.sleep(0.02)
        raise AssertionError("".join(self.printed))

    def worker(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    words = shlex.split(COMMANDS[0].replace("--port 8000", "--port 0"))
    assert words[:2] == ["zenspeed", "serve"]
    running = Server([*words[1:], "--threads", "1", "--requests-a-minute", "0"], folder.parent)
    running.wait_for("out: answers")
    yield running
    running.process.kill()


@pytest.fixture
def address(server: Server) -> str:
    return server.wait_for(r"http://127\.0\.0\.1:\d+").group()


def test_what_the_page_says_runs(address: str) -> None:
    assert len(COMMANDS) == 5
    for line in COMMANDS[1:]:
        words = shlex.split(line.replace("http://127.0.0.1:8000", address))
        done = subprocess.run([*words, "-w", " %{http_code}"], capture_output=True, text=True, check=True)
        assert done.stdout.endswith(" 200"), (line, done.stdout)
    # The likeliest tokens: drawn ones may end the text at once.
    code = EXAMPLE.replace("http://127.0.0.1:8000", address).replace("stream=True", "stream=True, temperature=0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout) > 10


def test_the_page_comes_at_once(address: str) -> None:
    """Below the time that a request has to come whole: what sends a file listens at the same time for the client's leaving."""
    for name, words in (("", "<!doctype html>"), ("page.js", '"use strict"'), ("style.css", ":root")):
        assert words in httpx.get(f"{address}/{name}", timeout=20).text


def test_the_official_client_streams(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    kept = {"model": "out", "prompt": "The", "max_tokens": 20, "temperature": 0.0}
    whole = client.completions.create(**kept)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**kept, stream=True)]  # type: ignore[call-overload]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) > 10


def test_a_killed_worker_is_started_again_and_nobody_hangs(server: Server, address: str) -> None:
    body = {"model": "out", "prompt": "The", "max_tokens": 4000, "n": 8, "stream": True, "temperature": 2}
    worker = server.worker()
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        worker.kill()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "model_not_ready"
    meanwhile = httpx.post(f"{address}/v1/completions", json={"model": "out", "prompt": "a"}, timeout=60)
    assert meanwhile.status_code == 503
    assert meanwhile.headers["Retry-After"] == "3"
    until = time.monotonic() + 60
    while httpx.get(f"{address}/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert httpx.post(f"{address}/v1/completions", json={"model": "out", "prompt": "a"}, timeout=60).status_code == 200
    assert 'zenspeed_worker_restarts{model="out"} 1.0' in httpx.get(f"{address}/metrics").text


def test_a_client_that_goes_away_frees_its_place(server: Server, address: str) -> None:
    body = {"model": "out", "prompt": "The", "max_tokens": 4000, "n": 4, "stream": True, "temperature": 2}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 30
    while 'zenspeed_worker_running{model="out"} 0.0' not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:  # half a request, then nothing
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{address}/health").status_code == 200


def test_prompts_are_not_logged(server: Server, address: str) -> None:
    httpx.post(f"{address}/v1/completions", json={"model": "out", "prompt": "secret words", "max_tokens": 1}, timeout=60)
    server.wait_for(r"POST /v1/completions 200 \d+ ms")
    assert "secret" not in "".join(server.printed)


def test_sigterm_lets_answers_end(server: Server, address: str) -> None:
    body = {"model": "out", "prompt": "The", "max_tokens": 1500, "stream": True, "temperature": 2, "seed": 1}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        worker = server.worker()
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("length", "stop")
    assert server.process.wait(30) == 0
    assert not worker.is_running()


def test_what_cannot_be_served_says_so(folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([f"a={folder}", f"a={folder}"], "two folders of one name"),
        ([f"{folder}", "--canary", "10%"], "needs a second folder of the same name"),
        ([f"{folder}", "--canary", "0"], "a share of the requests"),
        ([f"{tmp_path}/none"], "no such run or folder"),
        ([f"{tmp_path}"], "holds no complete checkpoint"),
    ):
        done = subprocess.run(
            command("serve", *arguments, "--port", "0"), env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert message in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr

"""Tokens per second of `zenspeed serve`, beside transformers and llama.cpp; requests per second beside a plain server.

    python benchmarks/serving.py decode --llama-python VENV/bin/python     (an environment with llama-cpp-python and gguf)
    python benchmarks/serving.py http
    python benchmarks/serving.py rows

All of one run use the same weights (random, from one seed) and prompts. Systems take turns, A B C A B C …, and the figure is
the median of the rounds. decode: Llama's shape, 6 layers, 384 wide, vocabulary 4,096, greedy, in one process. http: the same
through the server, as many clients as streams, each with the streaming interface. rows: a BERT of MiniLM's size under 16
clients, texts of uneven length, against FastAPI + transformers as most write it. Results: benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zenspeed.models.build import build_model
from zenspeed.models.hf import load_huggingface, to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 128
STREAMS = (1, 8, 32)
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decode", "http", "rows"))
    parser.add_argument(
        "--llama-python", help="the interpreter of an environment with llama-cpp-python; left out: not compared"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--streams", nargs="+", type=int, default=list(STREAMS))
    parser.add_argument("--systems", nargs="+", help="only these")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        {"decode": decode, "http": http, "rows": rows}[options.what](Path(name), options)


def make_writer(folder: Path) -> None:
    from pydoc_data.topics import topics

    tokenizer = Tokenizer.train("bpe", topics.values(), 4096)
    config = ModelConfig(preset="llama", layers=6, width=384, heads=6, feed_forward=1024, context=512)
    model = Transformer(config, 4096)
    model.init_weights(0)
    to_huggingface(model, folder, tokenizer.end_of_text)
    tokenizer.save(folder)


def prompts_of(count: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 4096, (count, PROMPT)).tolist()


def report(what: str, system: str, case: str, values: list[Figures]) -> Figures:
    """Medians and bests of the rounds, printed and kept."""
    row: Figures = {"what": what, "system": system, "case": case, "machine": os.uname().machine, "rounds": len(values)}
    row |= {key: statistics.median(v[key] for v in values) for key in values[0] if isinstance(values[0][key], float)}
    row |= {f"best_{key}": max(v[key] for v in values) for key in values[0] if key.endswith("_per_second")}
    print(f"{system:24} {case:>12}  " + "  ".join(f"{k} {v:,.4g}" for k, v in row.items() if isinstance(v, float)), flush=True)
    path = ROOT / "benchmarks" / "results" / "serving.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


# Decoding in one process ----------------------------------------------------------------------------------------------


def decode(folder: Path, options: argparse.Namespace) -> None:
    make_writer(folder)
    torch.set_num_threads(options.threads)
    systems: dict[str, Callable[[int], Figures]] = {}
    for weights in ("fp32", "bf16", "int8"):
        systems[f"zenspeed {weights}"] = ours(folder, weights, options.threads)
    for dtype in ("fp32", "bf16"):
        systems[f"transformers {dtype}"] = theirs(folder, dtype)
    if options.llama_python:
        for weights in ("fp32", "bf16", "int8"):
            systems[f"llama.cpp {'q8_0' if weights == 'int8' else weights}"] = llama(folder, weights, options)
    systems = {name: run for name, run in systems.items() if not options.systems or name in options.systems}
    for streams in options.streams:
        found: dict[str, list[Figures]] = {name: [] for name in systems}
        for _ in range(options.rounds):
            for name, run in systems.items():
                found[name].append(run(streams))
        for name, values in found.items():
            report("decode", name, f"{streams} streams", values)


def ours(folder: Path, weights: Any, threads: int) -> Callable[[int], Figures]:
    from zenspeed.serve.batching import Batcher, Request, Sampling
    from zenspeed.serve.compiled import build
    from zenspeed.serve.native import SOURCE, NativeCore

    library = build(Path.home() / ".cache" / "zenspeed" / "kernels", SOURCE)
    assert library is not None, "no C++ compiler"
    model = load_huggingface(folder).model

    def run(streams: int) -> Figures:
        core = NativeCore(model, library, max_tokens=33 * (PROMPT + NEW), weights=weights, threads=threads)
        batcher = Batcher(core, max_streams=max(STREAMS))
        for attempt, length in enumerate((4, NEW)):  # the first warms up
            ended, first = [], []
            done = threading.Semaphore(0)
            begun = time.perf_counter()

            def on_token(token: Any, first: list[float] = first, begun: float = begun) -> bool:
                first.append(time.perf_counter() - begun)
                return True

            def on_end(reason: str, ended: list[str] = ended, done: Any = done) -> None:
                ended.append(reason)
                done.release()

            for i, prompt in enumerate(prompts_of(streams)):
                shifted = [(t + attempt) % 4096 for t in prompt]  # so that no page of the first attempt is reused
                batcher.submit([Request(f"{attempt}.{i}", "a", shifted, length, on_token, on_end, Sampling(temperature=0))])
            for _ in range(streams):
                done.acquire()
            seconds = time.perf_counter() - begun
        batcher.close()
        core.shut()
        assert ended == ["length"] * streams
        return {"tokens_per_second": streams * NEW / seconds, "first_token_seconds": first[0]}

    return run


def theirs(folder: Path, dtype: str) -> Callable[[int], Figures]:
    from transformers import AutoModelForCausalLM

    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()

    def run(streams: int) -> Figures:
        tokens = torch.tensor(prompts_of(streams))
        settings = {"do_sample": False, "attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "eos_token_id": None}
        model.generate(tokens, max_new_tokens=4, **settings)
        begun = time.perf_counter()
        model.generate(tokens, max_new_tokens=1, **settings)
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        model.generate(tokens, max_new_tokens=NEW, min_new_tokens=NEW, **settings)
        return {"tokens_per_second": streams * NEW / (time.perf_counter() - begun), "first_token_seconds": first}

    return run


def llama(folder: Path, weights: str, options: argparse.Namespace) -> Callable[[int], Figures]:
    script = str(Path(__file__).with_name("serving_llama.py"))

    def run(streams: int) -> Figures:
        command = [options.llama_python, script, folder, weights, streams, PROMPT, NEW, options.threads]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])[str(streams)]

    return run


# Through HTTP ---------------------------------------------------------------------------------------------------------


class Server:
    """A server in a process of its own."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def __aenter__(self) -> Server:
        for _ in range(600):
            try:
                if (await Client(self.port).ask("GET", "/ready"))[0] == 200:
                    return self
            except OSError:
                pass
            await asyncio.sleep(0.1)
        raise RuntimeError("the server does not come up")

    async def __aexit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


class Client:
    """One connection that is kept, and as little work as can be: the machine is the server's."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes, list[float]]:
        """Status, body, and when each piece of it came."""
        if self._pair is None:
            self._pair = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._pair
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        begun = time.perf_counter()
        writer.write(head.encode() + data)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), None)
        status = int(lines[0].split()[1])
        if length is not None:
            return status, await reader.readexactly(length), [time.perf_counter() - begun]
        out, times = b"", []
        while size := int(await reader.readline(), 16):
            out += (await reader.readexactly(size + 2))[:-2]
            times.append(time.perf_counter() - begun)
        await reader.readline()
        return status, out, times


def http(folder: Path, options: argparse.Namespace) -> None:
    make_writer(folder)
    for weights in ("fp32", "bf16", "int8"):
        asyncio.run(_http(folder, weights, options))


async def _http(folder: Path, weights: str, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "zenspeed", "serve", f"m={folder}", "--port", "8397", "--weights", weights,
        "--threads", str(options.threads), "--requests-a-minute", "0"]  # fmt: skip
    async with Server(command, 8397) as server:
        for streams in options.streams:
            values = []
            for attempt in range(options.rounds + 1):
                clients = [Client(server.port) for _ in range(streams)]
                bodies = [
                    {"model": "m", "prompt": [(t + attempt) % 4096 for t in prompt], "max_tokens": NEW, "temperature": 0,
                        "stream": True, "ignore_eos": True}
                    for prompt in prompts_of(streams)
                ]  # fmt: skip
                begun = time.perf_counter()
                answers = await asyncio.gather(
                    *(c.ask("POST", "/v1/completions", b) for c, b in zip(clients, bodies, strict=True))
                )
                seconds = time.perf_counter() - begun
                assert all(status == 200 for status, _, _ in answers), answers
                first = statistics.median(times[0] for _, _, times in answers)
                values.append({"tokens_per_second": streams * NEW / seconds, "first_token_seconds": first})
            report("http", f"zenspeed {weights}", f"{streams} streams", values[1:])


# Rows -----------------------------------------------------------------------------------------------------------------

PLAIN = """
import sys, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

folder, kind, port = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = (AutoModelForSequenceClassification if kind == "classify" else AutoModel).from_pretrained(folder).eval()
app = FastAPI()

class Body(BaseModel):
    model: str
    input: str

@app.get("/ready")
def ready(): return {}

@app.post("/v1/classify")
def classify(body: Body):
    with torch.inference_mode():
        inputs = tokenizer(body.input, return_tensors="pt", truncation=True, max_length=256)
        return {"scores": model(**inputs).logits.softmax(-1)[0].tolist()}

@app.post("/v1/embeddings")
def embed(body: Body):
    with torch.inference_mode():
        inputs = tokenizer(body.input, return_tensors="pt", truncation=True, max_length=256)
        vector = model(**inputs).last_hidden_state.mean(1)
        return {"data": [{"embedding": torch.nn.functional.normalize(vector)[0].tolist()}]}

uvicorn.run(app, port=int(port), log_level="warning", access_log=False)
"""


def rows(folder: Path, options: argparse.Namespace) -> None:
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    tokenizer = Tokenizer.train("wordpiece", topics.values(), 4096)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.4, 0.8, 512), 4, 180).astype(int)  # mean about 40 words
    starts = rng.integers(0, len(words) - 200, 512)
    texts = [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]
    (folder / "plain.py").write_text(PLAIN, encoding="utf-8")
    for kind, head, labels in (("classify", "label", 4), ("embeddings", "embedding", 0)):
        path = folder / kind
        model: Any = build_model(
            ModelConfig(preset="bert", layers=6, width=384, heads=12, feed_forward=1536, context=256), tokenizer.vocab_size,
            head, labels,
        )  # type: ignore[arg-type]  # fmt: skip
        model.init_weights(0)
        to_huggingface(model, path, tokenizer.end_of_text)
        tokenizer.save(path)
        asyncio.run(_rows(folder, path, kind, texts, options))


async def _rows(folder: Path, path: Path, kind: str, texts: list[str], options: argparse.Namespace) -> None:
    ours = [sys.executable, "-m", "zenspeed", "serve", f"m={path}", "--requests-a-minute", "0", "--port"]
    systems = {
        "plain server": Server([sys.executable, str(folder / "plain.py"), str(path), kind, "8399"], 8399),
        "zenspeed": Server([*ours, "8398"], 8398),
        "zenspeed bf16": Server([*ours, "8397", "--weights", "bf16"], 8397),
    }
    async with contextlib.AsyncExitStack() as running:
        for server in systems.values():
            await running.enter_async_context(server)
        found: dict[str, list[Figures]] = {name: [] for name in systems}
        for attempt in range(options.rounds + 1):
            for name, server in systems.items():
                value = await _closed_loop(server.port, f"/v1/{kind}", texts, 16)
                if attempt:
                    found[name].append(value)
        best = {name: report(kind, name, "16 clients", values)["requests_per_second"] for name, values in found.items()}
        for name in list(systems)[1:]:
            print(f"{kind}: {name} {best[name] / best['plain server']:.2f} × the plain server")
        for name, server in systems.items():
            report(kind, name, "80 % load", [await _open_loop(server.port, f"/v1/{kind}", texts, 0.8 * best[name])])


async def _closed_loop(port: int, path: str, texts: list[str], clients: int) -> Figures:
    waiting = list(texts)

    async def work() -> None:
        client = Client(port)
        while waiting:
            status, _, _ = await client.ask("POST", path, {"model": "m", "input": waiting.pop()})
            assert status == 200

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return {"requests_per_second": len(texts) / (time.perf_counter() - begun)}


async def _open_loop(port: int, path: str, texts: list[str], rate: float) -> Figures:
    """Requests at random times, `rate` a second on average, whether earlier ones are answered or not."""
    rng = np.random.default_rng(1)
    idle: list[Client] = []
    taken: list[float] = []

    async def one(text: str) -> None:
        client = idle.pop(0) if idle else Client(port)  # the longest idle, before the server closes it
        begun = time.perf_counter()
        await client.ask("POST", path, {"model": "m", "input": text})
        taken.append(time.perf_counter() - begun)
        idle.append(client)

    tasks, when = [], time.perf_counter()
    for text in texts:
        when += rng.exponential(1 / rate)
        await asyncio.sleep(max(0, when - time.perf_counter()))
        tasks.append(asyncio.create_task(one(text)))
    await asyncio.gather(*tasks)
    median, p99 = np.quantile(taken, [0.5, 0.99])
    return {"median_seconds": float(median), "p99_seconds": float(p99), "p99_over_median": float(p99 / median)}


if __name__ == "__main__":
    main()

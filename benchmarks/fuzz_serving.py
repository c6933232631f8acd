"""Random and mutated requests to a server: every answer is below 500, errors have OpenAI's form, and nothing is left behind.

    zenspeed serve RUN --port 8000 --requests-a-minute 0 & python benchmarks/fuzz_serving.py http://127.0.0.1:8000 10000

tests/unit/test_serve_fuzz.py sends a few hundred of the same to a server in its own process.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx


class Sent(NamedTuple):
    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def valid(model: str) -> list[tuple[str, dict[str, Any]]]:
    """A good request for every endpoint."""
    few = {"model": model, "max_tokens": 3, "temperature": 0.5, "seed": 1}
    return [
        ("/v1/completions", {**few, "prompt": "The", "n": 2, "stop": ["x"], "logprobs": 2, "stream": False, "top_p": 0.9}),
        ("/v1/completions", {**few, "prompt": ["a", "b"], "echo": True, "logit_bias": {"5": 1}, "presence_penalty": 0.1}),
        ("/v1/completions", {**few, "prompt": [5, 6, 7], "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**few, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**few, "messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}]}),
        ("/v1/embeddings", {"model": model, "input": ["a", "b"], "encoding_format": "float"}),
        ("/v1/classify", {"model": model, "input": "a good film", "explain": True}),
        ("/v1/translate", {"model": model, "input": "hello"}),
        ("/v1/summarize", {"model": model, "input": ["hello"]}),
        ("/v1/answer", {"model": model, "question": "who?", "context": "he"}),
        ("/v1/search", {"model": model, "query": "a", "documents": ["b", "c"], "top": 1}),
    ]


def odd_value(rng: random.Random) -> Any:
    """Something that a request should not hold, or hardly ever does."""
    return rng.choice([
        None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320, float("nan"),
        float("inf"), "",
        " ", "\0", "\ud800", "\U0010ffff", "a" * 5000, "é" * 300, "{{ 7 * 7 }}", "{% raw %}", "../../etc/passwd", "<script>",
        "'; --",
        "%s%n", "<|endoftext|>", "你好", [], {}, [[]], [None], [1, "a"], {"a": {"b": [1]}}, ["x"] * 300, [0] * 500,
        [[1], ["a"]],
        {"type": "text"}, [{"role": "user"}], [{"role": "user", "content": None}], rng.random() * 10, rng.randrange(-5, 400),
    ])  # fmt: skip


def changed(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """`value` with one thing in it replaced, added, taken away or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        out, key = dict(value), rng.choice(list(value))
        what = rng.random()
        if what < 0.15:
            del out[key]
        elif what < 0.25:
            out[rng.choice(["tools", "best_of", "suffix", "x", "", "__proto__", "model ", "response_format"])] = odd_value(rng)
        else:
            out[key] = changed(value[key], rng, depth + 1)
        return out
    if isinstance(value, list) and value and rng.random() < 0.6:
        out, at = list(value), rng.randrange(len(value))
        out[at] = changed(value[at], rng, depth + 1)
        return out * rng.choice([1, 1, 2, 40])
    return odd_value(rng)


def requests(model: str, count: int, seed: int = 0) -> Iterator[Sent]:
    """`count` requests, always the same for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        path, body = rng.choice(valid(model))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
            body = changed(body, rng)
            if not isinstance(body, dict) or not body:
                break
        data = json.dumps(body).encode()
        what = rng.random()
        if what < 0.1 and data:  # bytes turned over
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 5)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            data = bytes(damaged)
        elif what < 0.15:
            data = data[: rng.randrange(len(data) + 1)]
        elif what < 0.18:
            data = rng.randbytes(rng.randrange(200))
        elif what < 0.2:
            data = b"[" * rng.randrange(3000) + data
        elif what < 0.22:
            path = rng.choice(
                ["/v1/", "/v1/models/../x", "/%00", "/v1/models/" + "a" * 300, "//", "/admin/swap", "/v1/completions/"]
            )
        kind = rng.choice(["application/json"] * 20 + ["text/plain", "multipart/form-data", "application/xml", "x"])
        method = rng.choice(["POST"] * 30 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
        yield Sent(method, path, data, {"Content-Type": kind})


def fault(sent: Sent, status: int, content: bytes) -> str | None:
    """What is wrong with an answer; None: nothing."""
    where = f"{sent.method} {sent.path} {sent.body[:300]!r}: {status} {content[:300]!r}"
    if status >= 500:
        return where
    if status >= 400 and sent.method != "HEAD":
        try:
            error = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            return f"{where}: no error in OpenAI's form"
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            return f"{where}: an error that says nothing"
    return None


async def main(address: str, count: int) -> None:
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        memory = await worker_memory(client)
        pending = iter([r for i, m in enumerate(listed) for r in requests(m["id"], count // len(listed), seed=i)])

        async def work() -> None:
            for sent in pending:
                try:
                    answer = await client.request(sent.method, sent.path, content=sent.body, headers=sent.headers)
                except httpx.InvalidURL:
                    continue
                except httpx.HTTPError as error:
                    faults.append(
                        f"{sent.method} {sent.path} {len(sent.body)} bytes {sent.body[:100]!r}: {type(error).__name__}"
                    )
                    continue
                statuses[answer.status_code] += 1
                if found := fault(sent, answer.status_code, answer.content):
                    faults.append(found)

        begun = time.monotonic()
        await asyncio.gather(*(work() for _ in range(16)))
        print(f"{sum(statuses.values()):,} requests in {time.monotonic() - begun:.0f} s: {dict(sorted(statuses.items()))}")
        print(f"memory of the workers before {memory / 2**20:.0f} MiB, after {await worker_memory(client) / 2**20:.0f} MiB")
    print("\n".join(faults[:20]) or "no fault")
    sys.exit(bool(faults))


async def worker_memory(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    assert not [
        line for line in lines if line.startswith(("zenspeed_worker_running", "zenspeed_worker_waiting")) and line[-3:] != "0.0"
    ]
    return sum(float(line.split()[-1]) for line in lines if line.startswith("zenspeed_worker_memory_bytes{"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))

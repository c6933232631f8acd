"""Random and mutated requests: never a 5xx, never a hang, and answers as before (benchmarks/fuzz_serving.py sends more)."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.test_serve_http import folders, server

__all__ = ["folders"]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz_serving.py"
    spec = importlib.util.spec_from_file_location("fuzz_serving", path)
    assert spec and spec.loader
    module = sys.modules["fuzz_serving"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["writer", "judge", "vectors", "finder"])
def test_no_request_is_the_servers_fault(folders: dict[str, Path], fuzz: ModuleType, name: str) -> None:
    probe = {
        "writer": ("/v1/completions", {"model": "writer", "prompt": "The", "max_tokens": 9, "temperature": 0}),
        "judge": ("/v1/classify", {"model": "judge", "input": "a good film"}),
        "finder": ("/v1/answer", {"model": "finder", "question": "who?", "context": "Anna wrote it."}),
        "vectors": ("/v1/embeddings", {"model": "vectors", "input": "a good film"}),
    }[name]

    async def work() -> None:
        from zenspeed.serve.limits import Limits

        statuses: Counter[int] = Counter()
        async with server(folders, name, limits=Limits(requests_a_minute=0)) as (client, models):
            before = (await client.post(probe[0], json=probe[1])).json()
            for sent in fuzz.requests(name, 250, seed=7):
                answer = await client.request(sent.method, sent.path, content=sent.body, headers=sent.headers)
                assert fuzz.fault(sent, answer.status_code, answer.content) is None
                statuses[answer.status_code] += 1
            after = (await client.post(probe[0], json=probe[1])).json()
            for moving in ("id", "created"):
                before.pop(moving, None), after.pop(moving, None)
            assert after == before
            backend: Any = models.by_name[name].current.backend
            assert backend.running == 0
            assert not backend.worker._keys
            assert statuses[200] > 0  # some mutations are harmless, and good requests are among them
            assert statuses[400] >= 50

    asyncio.run(work())

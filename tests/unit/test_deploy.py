"""Versions: a swap loses no request, a candidate proves itself or goes, one that is wrong is never served."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.unit.local_backend import LocalBackend
from zenspeed.errors import InputError
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.serve.deploy import TRIAL, Served
from zenspeed.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model, and one that is damaged."""
    path = tmp_path_factory.mktemp("versions")
    tokenizer = Tokenizer.train("char", ["abcdefgh ."])
    for seed, name in enumerate(("old", "new")):
        model = Transformer(ModelConfig(preset="llama", layers=1, width=16, heads=2, context=64), tokenizer.vocab_size)
        model.init_weights(seed)
        to_huggingface(model, path / name, tokenizer.end_of_text)
        tokenizer.save(path / name)
    shutil.copytree(path / "new", path / "damaged")
    weights = load_file(path / "damaged" / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    return path


ASK: dict[str, Any] = {
    "op": "generate", "client": "a", "n": 1, "max_tokens": 8, "prompt": "abc", "ignore_end": True,
    "sampling": {"temperature": 0.0, "seed": 0, "bias": {}},
}  # fmt: skip


async def text_of(served: Served, **more: Any) -> str:
    return "".join([e["text"] async for e in served.ask({**ASK, **more}) if e["event"] == "text"])


async def length_of(served: Served, **more: Any) -> int:
    return sum([e["tokens"] async for e in served.ask({**ASK, **more}) if e["event"] == "end"])


def run(root: Path, work: Callable[[Served], Awaitable[None]]) -> None:
    async def inside() -> None:
        served = Served("m", LocalBackend(root / "old"), LocalBackend)
        served.current.backend.start()
        try:
            await work(served)
        finally:
            await served.stop()

    asyncio.run(inside())


def test_a_swap_loses_no_request(root: Path) -> None:
    async def work(served: Served) -> None:
        old = await text_of(served)
        under_way = [asyncio.create_task(length_of(served, max_tokens=50)) for _ in range(6)]
        await asyncio.sleep(0)
        before = served.current.backend
        await served.swap(root / "new")
        new = await text_of(served)
        assert new != old
        assert await asyncio.gather(*under_way) == [50] * 6
        for _ in range(200):
            if before.state == "stopped":
                break
            await asyncio.sleep(0.01)
        assert before.state == "stopped"
        assert "took over from old" in served.history[-1]

    run(root, work)


def test_a_candidate_that_cannot_be_loaded_changes_nothing(root: Path) -> None:
    async def work(served: Served) -> None:
        old = await text_of(served)
        with pytest.raises(InputError, match=r"damaged: .*missing: model\.norm\.weight"):
            await served.swap(root / "damaged", 0.5)
        assert served.candidate is None
        assert "rolled back: not loaded" in served.history[-1]
        assert await text_of(served) == old

    run(root, work)


def test_a_candidate_gets_its_share_and_takes_over(root: Path) -> None:
    async def work(served: Served) -> None:
        old = await text_of(served)
        await served.swap(root / "new", 0.25)
        candidate = served.candidate
        assert candidate is not None
        with pytest.raises(InputError, match="new is on trial"):
            await served.swap(root / "new")
        for _ in range(80):
            await text_of(served)
        assert 8 <= candidate.answers <= 34
        while served.candidate is not None:
            await text_of(served)
        assert candidate.answers == TRIAL
        assert served.current is candidate
        assert await text_of(served) != old

    run(root, work)


def test_a_candidate_that_fails_is_rolled_back(root: Path) -> None:
    async def work(served: Served) -> None:
        await served.swap(root / "new", 0.5)
        candidate: Any = served.candidate
        candidate.backend.fail = True
        count = 0
        while served.candidate is not None:
            await text_of(served)
            count += 1
            assert count < 100
        assert candidate.failures == 3
        assert "new: rolled back: 3 of 3 answers failed" in served.history[-1]
        assert await length_of(served) == 8

    run(root, work)


def test_a_version_that_is_gone_costs_nothing_while_another_answers(root: Path) -> None:
    async def work(served: Served) -> None:
        await served.swap(root / "new", 0.5)
        candidate: Any = served.candidate
        candidate.backend.gone = True
        for _ in range(20):
            assert await length_of(served) == 8
        assert served.candidate is None

    run(root, work)


def test_swapping_needs_its_own_key_and_a_folder_of_the_list(root: Path, tmp_path: Path) -> None:
    import httpx

    from zenspeed.serve.deploy import Models
    from zenspeed.serve.http import Settings, create_app
    from zenspeed.serve.limits import Keys

    (tmp_path / "keys").write_text("a-key-of-the-admin", encoding="utf-8")

    async def work(served: Served) -> None:
        app = create_app(Models([served]), Settings(admin=Keys(tmp_path / "keys"), versions=root))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {"model": "m", "version": "new", "canary": 0.5}
            assert (await client.post("/admin/swap", json=body)).status_code == 401
            client.headers["Authorization"] = "Bearer a-key-of-the-admin"
            for version in ("../old", "/etc", ".", "none"):
                wrong = await client.post("/admin/swap", json={**body, "version": version})
                assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "version")
            assert (await client.post("/admin/swap", json={**body, "version": "damaged"})).status_code == 409
            assert (await client.post("/admin/swap", json=body)).json()["candidate"]["state"] == "ready"
            assert json.loads((await client.get("/admin/models")).text)["m"]["share"] == 0.5
            assert (await client.post("/admin/roll-back/m")).json()["candidate"] is None

    run(root, work)

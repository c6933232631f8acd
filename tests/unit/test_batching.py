"""Continuous batching: who gets a place, what ends an answer, and that answers are those of a request alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zenspeed.errors import InputError
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.serve.batching import Batcher, Busy, FairQueue, Request, Sampling, Token
from zenspeed.serve.compiled import build
from zenspeed.serve.core import Feed
from zenspeed.serve.native import SOURCE, NativeCore
from zenspeed.serve.plain import PlainCore

V = 50


class Counting:
    """A core whose next token is one more than the last. `gate`: each step waits for it."""

    vocab_size, context, max_rows, whole_prompts, kind = V, 40, 16, False, "counting"

    def __init__(self, max_tokens: int = 200) -> None:
        self.max_tokens = self.free = max_tokens
        self.gate = threading.Event()
        self.gate.set()
        self.steps: list[int] = []

    def fits(self, total: int) -> bool:
        return total <= self.max_tokens

    def room(self) -> tuple[int, int]:
        return self.max_tokens, self.free

    def open(self, tokens: Sequence[int], total: int) -> Any:
        if total > self.free:
            return None
        self.free -= total
        return Stream(list(tokens), total)

    def close(self, stream: Any) -> None:
        self.free += stream.total

    def step(self, feeds: Sequence[Feed]) -> np.ndarray:
        assert self.gate.wait(10)
        self.steps.append(sum(feed.num for feed in feeds))
        out = []
        for stream, num, wanted in feeds:
            stream.num_read += num
            if wanted:
                out.append(np.eye(V, dtype=np.float32)[(stream.tokens[-1] + 1) % V] * 9)
        return np.stack(out) if out else np.empty((0, V), np.float32)


class Stream:
    def __init__(self, tokens: list[int], total: int) -> None:
        self.tokens, self.total, self.num_read = tokens, total, 0


class Got:
    """What one request got."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.reason: str | None = None
        self.ended = threading.Event()
        self.when = 0.0

    def end(self, reason: str) -> None:
        self.reason, self.when = reason, time.monotonic()
        self.ended.set()

    def numbers(self) -> list[int]:
        assert self.ended.wait(10)
        return [token.number for token in self.tokens]


def request(key: str, tokens: Sequence[int] = (1, 2), num: int = 3, client: str = "a", **more: Any) -> tuple[Request, Got]:
    got = Got()
    more.setdefault("sampling", Sampling(temperature=0))

    def on_token(token: Token) -> bool:
        got.tokens.append(token)
        return True

    return Request(key, client, tokens, num, on_token, got.end, **more), got


@pytest.fixture
def batchers() -> Iterator[list[Batcher]]:
    made: list[Batcher] = []
    yield made
    for batcher in made:
        batcher.close()


def test_answers_end_at_their_length_at_stop_tokens_and_at_the_context(batchers: list[Batcher]) -> None:
    core = Counting()
    batcher = Batcher(core)
    batchers.append(batcher)
    a, got_a = request("a", [1, 2])
    b, got_b = request("b", [3], 30, stop_tokens=frozenset([7]))
    c, got_c = request("c", range(38), 30)
    for r in (a, b, c):
        batcher.submit([r])
    assert got_a.numbers() == [3, 4, 5]
    assert got_b.numbers() == [4, 5, 6]
    assert got_c.numbers() == [38, 39]
    assert (got_a.reason, got_b.reason, got_c.reason) == ("length", "stop", "length")
    assert core.free == core.max_tokens
    assert max(core.steps) <= core.max_rows


def test_what_can_never_fit_is_refused_with_the_numbers(batchers: list[Batcher]) -> None:
    batcher = Batcher(Counting(max_tokens=20))
    batchers.append(batcher)
    with pytest.raises(InputError, match="41 tokens, and the model takes 40"):
        batcher.submit([request("a", range(41))[0]])
    with pytest.raises(InputError, match=r"10 tokens of prompt and max_tokens 15 do not fit: there is room for 20"):
        batcher.submit([request("a", range(10), 15)[0]])


def test_a_full_queue_says_when_to_come_again_and_memory_is_not_exceeded(batchers: list[Batcher]) -> None:
    core = Counting(max_tokens=30)
    core.gate.clear()
    batcher = Batcher(core, max_queue=4)
    batchers.append(batcher)
    pairs = [request(str(i), [1], 9) for i in range(4)]
    for r, _ in pairs:
        batcher.submit([r])
    while batcher.counts()[0] < 3:  # three of ten tokens fit
        time.sleep(0.001)
    for i in range(3):
        batcher.submit([request(f"more {i}", [1], 9)[0]])
    with pytest.raises(Busy) as error:
        batcher.submit([request("too many", [1], 9)[0]])
    assert error.value.seconds >= 1
    assert batcher.counts()[0] == 3
    core.gate.set()
    assert all(len(got.numbers()) == 9 for _, got in pairs)


def test_cancelled_and_late_requests_end_and_give_their_place_back(batchers: list[Batcher]) -> None:
    core = Counting(max_tokens=60)
    core.gate.clear()
    batcher = Batcher(core)
    batchers.append(batcher)
    a, got_a = request("a", [1], 30)
    b, got_b = request("b", [1], 30)  # waits: there is no room
    late, got_late = request("late", [1], 30, seconds=0.0)
    for r in (a, b, late):
        batcher.submit([r])
    while batcher.counts()[0] < 1:
        time.sleep(0.001)
    batcher.cancel("a")
    batcher.cancel("b")
    core.gate.set()
    got_late.numbers()
    got_a.numbers()
    got_b.numbers()
    assert (got_a.reason, got_b.reason, got_late.reason) == ("cancelled", "cancelled", "timeout")
    c, got_c = request("c", [1], 30)
    batcher.submit([c])
    assert len(got_c.numbers()) == 30


def test_clients_take_turns() -> None:
    queue = FairQueue()
    for i in range(3):
        queue.push(request(f"many {i}", client="many")[0], 0)
    queue.push(request("one", client="one")[0], 0)
    assert [queue.pop()[0].key for _ in range(4)] == ["many 0", "one", "many 1", "many 2"]
    assert len(queue) == 0


def test_a_failing_step_leaves_nobody_waiting() -> None:
    core = Counting()
    core.step = None  # type: ignore[assignment]
    batcher = Batcher(core)
    r, got = request("a")
    batcher.submit([r])
    assert got.numbers() == []
    assert got.reason == "error"
    batcher.wait()
    assert isinstance(batcher.failure, TypeError)
    with pytest.raises(Busy):
        batcher.submit([request("b")[0]])


def test_penalties_and_bias_change_the_choice(batchers: list[Batcher]) -> None:
    batcher = Batcher(Counting())
    batchers.append(batcher)
    biased, got = request("a", [1], 2, sampling=Sampling(temperature=0, bias={30: 50.0}))
    batcher.submit([biased])
    assert got.numbers() == [30, 30]
    tired, got = request("b", [1], 3, sampling=Sampling(temperature=0, bias={30: 10.0}, frequency_penalty=2.0))
    batcher.submit([tired])
    assert got.numbers() == [30, 31, 32]  # 10 against 9, then 8 against 9


def test_logprobs_are_of_the_model_itself(batchers: list[Batcher]) -> None:
    batcher = Batcher(Counting())
    batchers.append(batcher)
    r, got = request("a", [1], 1, sampling=Sampling(temperature=0.5, seed=1, logprobs=3))
    batcher.submit([r])
    got.numbers()
    token = got.tokens[0]
    wanted = torch.log_softmax(torch.eye(V)[2] * 9, 0)
    assert token.logprob == pytest.approx(float(wanted[token.number]), abs=1e-5)
    assert token.top[0] == (2, pytest.approx(float(wanted[2]), abs=1e-5))
    assert len(token.top) == 3


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(ModelConfig(preset="llama", layers=2, width=32, heads=2, context=96), V).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.normal_(std=0.5)
    return made


@pytest.mark.parametrize("native", [True, False])
def test_answers_do_not_depend_on_who_shares_the_batch(model: Transformer, batchers: list[Batcher], native: bool) -> None:
    library = build(Path.home() / ".cache" / "zenspeed" / "kernels", SOURCE) if native else None
    if native and library is None:
        pytest.skip("no C++ compiler")
    core: Any = PlainCore(model, max_tokens=2000) if library is None else NativeCore(model, library, max_tokens=2000, threads=2)
    batcher = Batcher(core, max_streams=8)
    batchers.append(batcher)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, rng.integers(1, 60)).tolist() for _ in range(20)]

    def ask(number: int, name: str) -> Got:
        sampling = Sampling(temperature=0.9 * (number % 2), seed=number, logprobs=0)
        r, got = request(f"{name}{number}", prompts[number], 12, client=str(number % 3), sampling=sampling)
        batcher.submit([r])
        return got

    alone = []
    for number in range(20):
        got = ask(number, "alone")
        got.numbers()
        alone.append(got.tokens)
    together = [ask(number, "together") for number in range(20)]
    assert [got.numbers() and got.tokens for got in together] == alone


def test_choices_of_one_prompt_read_it_once(model: Transformer, batchers: list[Batcher]) -> None:
    library = build(Path.home() / ".cache" / "zenspeed" / "kernels", SOURCE)
    if library is None:
        pytest.skip("no C++ compiler")
    core = NativeCore(model, library, max_tokens=2000, threads=1)
    batcher = Batcher(core)
    batchers.append(batcher)
    made = [request(f"r#{i}", list(range(40)), 4, sampling=Sampling(seed=i)) for i in range(4)]
    batcher.submit([r for r, _ in made])
    assert [len(got.numbers()) for _, got in made] == [4] * 4
    assert batcher.reused == 3 * 32
    assert len({tuple(got.numbers()) for _, got in made}) > 1

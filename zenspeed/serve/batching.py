"""Continuous batching: many requests in one step of the model, coming and going at any step.

    submit ─ fair queue ─ open in the core ─ its prompt, in pieces ─ a token a step ─ closed: end, length, stop, cancelled, late

One thread runs the steps. A step takes one token of every running stream and fills up with tokens of prompts, so that a long
prompt delays the others by little. Room for the whole answer is reserved before a request starts: what has begun is never
thrown out, and what cannot fit is refused before it waits.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch

from zenspeed.errors import InputError
from zenspeed.generate import sample
from zenspeed.serve.core import Core, Feed, Stream

Reason = Literal["stop", "length", "cancelled", "timeout", "error"]


class Busy(Exception):
    """The queue is full; `seconds` until it is worth asking again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; ask again in {seconds} s")
        self.seconds = seconds


class Token(NamedTuple):
    """One token of an answer."""

    number: int
    logprob: float | None
    top: list[tuple[int, float]]
    """The likeliest tokens with their logarithms, as many as were asked for."""


@dataclass
class Sampling:
    """How a token is taken from the logits."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """The same for each time that it has it."""
    bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """How many of the likeliest tokens to give with each; None: no logarithms at all."""


@dataclass
class Request:
    """One answer to be written.

    Args:
        on_token: gets each token; false ends the answer (`stop`).
        on_end: called once. Both are called by the thread of the steps and must not wait.
        seconds: after which the answer ends as it is (`timeout`).
    """

    key: str
    client: str
    tokens: Sequence[int]
    max_tokens: int
    on_token: Callable[[Token], bool]
    on_end: Callable[[Reason], None]
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    seconds: float = 600.0


class _Running:
    """A request that has a place."""

    def __init__(self, request: Request, core: Core, stream: Stream, deadline: float) -> None:
        self.request, self.core, self.stream, self.deadline = request, core, stream, deadline
        self.generator = torch.Generator().manual_seed(request.sampling.seed)
        self.answer: list[int] = []
        self.counts: dict[int, int] = {}

    @property
    def unread(self) -> int:
        return len(self.stream.tokens) - self.stream.num_read


class FairQueue:
    """Requests by client, the clients in turn: one that sends a hundred waits behind one that sends one."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[tuple[Request, float]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def push(self, request: Request, deadline: float) -> None:
        self._clients.setdefault(request.client, deque()).append((request, deadline))

    def peek(self) -> tuple[Request, float]:
        return next(iter(self._clients.values()))[0]

    def pop(self) -> tuple[Request, float]:
        client, line = next(iter(self._clients.items()))
        first = line.popleft()
        self._clients.move_to_end(client)
        if not line:
            del self._clients[client]
        return first

    def remove(self, unwanted: Callable[[Request, float], bool]) -> list[Request]:
        """Takes out those that `unwanted` picks."""
        out = []
        for client in list(self._clients):
            keep = deque(entry for entry in self._clients[client] if not unwanted(*entry))
            out += [request for request, deadline in self._clients[client] if unwanted(request, deadline)]
            self._clients[client] = keep
            if not keep:
                del self._clients[client]
        return out


class Batcher:
    """Runs requests on `core`, at most `max_streams` at a time, with at most `max_queue` waiting.

    Args:
        after_step: called after every step, by its thread.
    """

    def __init__(
        self, core: Core, *, max_streams: int = 32, max_queue: int = 256, after_step: Callable[[], None] = lambda: None
    ) -> None:
        self.core, self.max_streams, self.max_queue = core, min(max_streams, core.max_rows), max_queue
        self.generated = self.prompted = self.reused = self.steps = 0
        """Tokens written, read, taken from pages that were there; steps taken. They only grow."""
        self.failure: BaseException | None = None
        self._after_step = after_step
        self._queue = FairQueue()
        self._followers: dict[str, list[tuple[Request, float]]] = {}
        self._running: list[_Running] = []
        self._cancelled: set[str] = set()
        self._seconds_a_request = 1.0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    # From other threads -----------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Puts the choices of one prompt into the queue; the second and later ones start when the first has read the prompt.

        Raises:
            InputError: the prompt with its answer can never fit. Busy: the queue is full.
        """
        first = requests[0]
        self._check(first)
        now = time.monotonic()
        with self._changed:
            if self.failure is not None or self._closing:
                raise Busy(5)
            waiting = len(self._queue) + sum(map(len, self._followers.values()))
            if waiting + len(requests) > self.max_queue:
                raise Busy(max(1, min(60, round(waiting * self._seconds_a_request / self.max_streams))))
            self._queue.push(first, now + first.seconds)
            if len(requests) > 1:
                self._followers[first.key] = [(request, now + request.seconds) for request in requests[1:]]
            self._changed.notify()

    def cancel(self, key: str) -> None:
        """Ends a request, and those that follow it; one that is not there is no matter."""
        with self._changed:
            self._cancelled.add(key)
            self._changed.notify()

    def use(self, core: Core) -> None:
        """Requests that start from now on run on `core`; those that run go on where they are."""
        with self._changed:
            self.core = core

    def counts(self) -> tuple[int, int]:
        """Requests that run and that wait."""
        with self._changed:
            return len(self._running), len(self._queue) + sum(map(len, self._followers.values()))

    def close(self, seconds: float = 10.0) -> None:
        """Ends all that runs or waits as cancelled, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def wait(self) -> None:
        """Until the thread of the steps has ended."""
        self._thread.join()

    def _check(self, request: Request) -> None:
        num, context = len(request.tokens), self.core.context
        if num == 0:
            raise InputError("the prompt has no tokens")
        if num >= context:
            raise InputError(f"the prompt has {num} tokens, and the model takes {context} with the answer; shorten it")
        if not self.core.fits(self._total(request)):
            room = self.core.room()[0]
            raise InputError(
                f"{num} tokens of prompt and max_tokens {request.max_tokens} do not fit: there is room for {room} tokens"
            )

    def _total(self, request: Request) -> int:
        return min(len(request.tokens) + request.max_tokens, self.core.context)

    # The thread of the steps ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._prepare():
                for core in {id(r.core): r.core for r in self._running}.values():
                    self._step(core, [r for r in self._running if r.core is core])
                self._after_step()
        except BaseException as error:  # whatever it is, nobody is left waiting
            self.failure = error
        self._end_all()
        self._after_step()

    def _prepare(self) -> bool:
        """Waits for something to do; drops what is cancelled or late, and starts what there is room for."""
        with self._changed:
            while not (self._queue or self._running or self._closing or self._cancelled):
                self._changed.wait()
            if self._closing:
                return False
            cancelled, self._cancelled = self._cancelled, set()
            now = time.monotonic()
            dropped = self._queue.remove(lambda request, deadline: request.key in cancelled)
            late = self._queue.remove(lambda request, deadline: deadline < now)
            dropped += [request for key in cancelled for request, _ in self._followers.pop(key, [])]
            late += [request for first in late for request, _ in self._followers.pop(first.key, [])]
            self._start()
        for request in dropped:
            request.on_end("cancelled")
        for request in late:
            request.on_end("timeout")
        for running in list(self._running):
            if running.request.key in cancelled:
                self._end(running, "cancelled")
            elif running.deadline < now:
                self._end(running, "timeout")
        if dropped or late or (cancelled and not self._running):
            self._after_step()
        return True

    def _start(self) -> None:
        while self._queue and len(self._running) < self.max_streams:
            request, deadline = self._queue.peek()
            stream = self.core.open(request.tokens, self._total(request))
            if stream is None:
                return
            self._queue.pop()
            self.reused += stream.num_read
            self._running.append(_Running(request, self.core, stream, deadline))

    def _step(self, core: Core, running: list[_Running]) -> None:
        feeds, fed = [], []
        left = core.max_rows - sum(r.unread == 1 for r in running)
        for r in running:
            count = r.unread if r.unread == 1 or core.whole_prompts else min(r.unread, left)
            if count:
                left -= count if r.unread > 1 else 0
                feeds.append(Feed(r.stream, count, count == r.unread))
                fed.append(r)
        if not feeds:
            return
        begun = time.monotonic()
        logits = core.step(feeds)
        self.steps += 1
        for r, feed in zip(fed, feeds, strict=True):
            if not r.answer:
                self.prompted += feed.num
        written = [r for r, feed in zip(fed, feeds, strict=True) if feed.wanted]
        likeliest = logits.argmax(1) if any(map(_is_greedy, written)) else np.empty(0, np.int64)
        for row, r in enumerate(written):
            self._take(r, logits[row], int(likeliest[row]) if _is_greedy(r) else None)
        share = (time.monotonic() - begun) * 64 / max(1, len(running))
        self._seconds_a_request += 0.05 * (share * self.max_streams - self._seconds_a_request)

    def _take(self, r: _Running, logits: np.ndarray, token: int | None) -> None:
        """The next token of `r`, given out; ends it if it was the last."""
        request, sampling = r.request, r.request.sampling
        if not r.answer:
            self._release_followers(request.key)
        try:
            if token is None:
                token = self._draw(r, logits)
            entry = Token(token, None, []) if sampling.logprobs is None else _with_logprobs(token, logits, sampling.logprobs)
            if token in request.stop_tokens:
                return self._end(r, "stop")
            r.answer.append(token)
            r.counts[token] = r.counts.get(token, 0) + 1
            r.stream.tokens.append(token)
            self.generated += 1
            more = request.on_token(entry)
        except Exception:  # logits that are not numbers, for instance: this answer fails, not all of them
            return self._end(r, "error")
        if not more:
            return self._end(r, "stop")
        if len(r.answer) >= request.max_tokens or len(r.stream.tokens) >= r.core.context:
            return self._end(r, "length")
        return None

    @staticmethod
    def _draw(r: _Running, logits: np.ndarray) -> int:
        s = r.request.sampling
        values = torch.from_numpy(logits.copy())
        for token, count in r.counts.items() if s.presence_penalty or s.frequency_penalty else ():
            values[token] -= s.presence_penalty + s.frequency_penalty * count
        for token, bias in s.bias.items():
            values[token] += bias
        return sample(values, s.temperature, s.top_k, s.top_p, r.generator)

    def _release_followers(self, key: str) -> None:
        with self._changed:
            for request, deadline in self._followers.pop(key, ()):
                self._queue.push(request, deadline)

    def _end(self, r: _Running, reason: Reason) -> None:
        r.core.close(r.stream)
        with self._changed:
            self._running.remove(r)
        if reason in ("cancelled", "timeout", "error"):
            self._drop_followers(r.request.key, reason)
        else:
            self._release_followers(r.request.key)
        r.request.on_end(reason)

    def _drop_followers(self, key: str, reason: Reason) -> None:
        with self._changed:
            followers = self._followers.pop(key, [])
        for request, _ in followers:
            request.on_end(reason)

    def _end_all(self) -> None:
        reason: Reason = "error" if self.failure is not None else "cancelled"
        for r in list(self._running):
            self._end(r, reason)
        with self._changed:
            self._closing = True
            left = self._queue.remove(lambda *_: True) + [q for line in self._followers.values() for q, _ in line]
            self._followers = {}
        for request in left:
            request.on_end(reason)


def _is_greedy(r: _Running) -> bool:
    s = r.request.sampling
    return s.temperature == 0 and not (s.bias or s.presence_penalty or s.frequency_penalty)


def _with_logprobs(token: int, logits: np.ndarray, count: int) -> Token:
    """Of the model's own distribution, before temperature and all else."""
    top = float(logits.max())
    if not np.isfinite(top):
        raise RuntimeError("logits that are not numbers")
    total = top + float(np.log(np.exp(logits - top).sum()))
    best = np.argpartition(-logits, min(count, len(logits) - 1))[:count] if count else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    return Token(token, float(logits[token]) - total, [(int(i), float(logits[i]) - total) for i in best])

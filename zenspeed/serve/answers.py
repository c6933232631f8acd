"""From events of workers to OpenAI's answers: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from zenspeed.serve.deploy import Served
from zenspeed.serve.metrics import Metrics
from zenspeed.serve.process import Gone, only
from zenspeed.serve.shapes import Problem

Event = dict[str, Any]


@dataclass
class Choice:
    """One answer as it grows."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None


@dataclass
class Usage:
    prompt: int = 0
    written: int = 0

    def body(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt, "completion_tokens": self.written, "total_tokens": self.prompt + self.written}


class Form:
    """How completions and chats differ in what they send."""

    def __init__(self, chat: bool, model: str, with_logprobs: bool, echo: Sequence[Choice] = ()) -> None:
        """`echo`: the prompt of each choice, which is sent before its answer."""
        self.chat, self._model, self._with_logprobs, self._echo = chat, model, with_logprobs, echo
        self._id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._offset: dict[int, int] = {}

    def head(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice."""
        if self.chat:
            return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        if self._echo:
            echo = self._echo[index]
            scored = self._logprobs(index, echo.logprobs) if echo.logprobs else None
            return self._chunk({"index": index, "text": echo.text, "logprobs": scored, "finish_reason": None})
        return None

    def piece(self, index: int, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.chat:
            return self._chunk({"index": index, "delta": {"content": text}, "logprobs": self._logprobs(index, logprobs),
                "finish_reason": None})  # fmt: skip
        return self._chunk({"index": index, "text": text, "logprobs": self._logprobs(index, logprobs), "finish_reason": None})

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        if self.chat:
            return self._chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})
        return self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": reason})

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        out = []
        for index, choice in enumerate(choices):
            scored = [*(self._echo[index].logprobs if self._echo else []), *choice.logprobs]
            entry: dict[str, Any] = {
                "index": index, "logprobs": self._logprobs(index, scored), "finish_reason": choice.reason
            }  # fmt: skip
            if self.chat:
                entry["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            else:
                entry["text"] = (self._echo[index].text if self._echo else "") + choice.text
            out.append(entry)
        return {**self.head(False), "choices": out, "usage": usage.body()}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self.head(True), "choices": [choice]}

    def _logprobs(self, index: int, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        if self.chat:
            return {"content": [_chat_logprob(e) | {"top_logprobs": [_chat_logprob(t) for t in e["top"]]} for e in entries],
                "refusal": None}  # fmt: skip
        offsets = []
        for entry in entries:
            offsets.append(self._offset.get(index, 0))
            self._offset[index] = offsets[-1] + len(entry["token"])
        return {
            "tokens": [e["token"] for e in entries], "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{t["token"]: t["logprob"] for t in e["top"]} for e in entries], "text_offset": offsets,
        }  # fmt: skip


def _chat_logprob(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": list(entry["token"].encode())}


async def run(served: Served, messages: Sequence[dict[str, Any]], metrics: Metrics) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several generations with the number of the choice they are of.

    Raises:
        Problem: an answer cannot be given.
    """
    begun, first = time.monotonic(), True
    async with aclosing(_merged(served, messages)) as events:
        async for number, event in events:
            if event["event"] == "error":
                raise problem_of(event)
            if first and event["event"] in ("text", "end"):
                metrics.first_token(served.name, time.monotonic() - begun)
                first = False
            if event["event"] == "end":
                event["reason"] = _reason(event)
                metrics.tokens(served.name, event["prompt_tokens"] if event["index"] == 0 else 0, event["tokens"])
            yield number * messages[number]["n"] + event["index"], event


async def _merged(served: Served, messages: Sequence[dict[str, Any]]) -> AsyncGenerator[tuple[int, Event], None]:
    if len(messages) == 1:
        async with aclosing(_asked(served, messages[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with aclosing(_asked(served, messages[number])) as events:
                async for event in events:
                    queue.put_nowait((number, event))
            queue.put_nowait(None)
        except Problem as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(number)) for number in range(len(messages))]
    try:
        left = len(messages)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _asked(served: Served, message: dict[str, Any]) -> AsyncGenerator[Event, None]:
    try:
        async with aclosing(served.ask(message)) as events:
            async for event in events:
                yield event
    except Gone:
        raise gone(served) from None


async def rows(served: Served, message: Event) -> tuple[list[Any], int]:
    """The results of a message about rows, and the tokens that were read.

    Raises:
        Problem: they cannot be given.
    """
    try:
        event = await only(served.ask(message))
    except Gone:
        raise gone(served) from None
    if event["event"] == "error":
        raise problem_of(event)
    return event["value"], event["prompt_tokens"]


def gone(served: Served) -> Problem:
    return Problem(503, f"{served.name} is not answering just now, it is being started; ask again", code="model_not_ready",
        retry_after=3)  # fmt: skip


def problem_of(event: Event) -> Problem:
    """The error that a worker's event says."""
    if event["kind"] == "input":
        return Problem(400, event["message"])
    if event["kind"] == "busy":
        return Problem(429, event["message"], code="queue_full", retry_after=event["seconds"])
    return Problem(500, f"the model failed ({event['message']})")


def _reason(event: Event) -> str:
    reason = str(event["reason"])
    if reason == "error":
        raise Problem(500, "the model failed while it wrote")
    if reason == "timeout" and not event["tokens"]:
        raise Problem(408, "the request waited longer than a request may take", retry_after=5)
    return {"timeout": "length", "cancelled": "stop"}.get(reason, reason)


async def whole(form: Form, count: int, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
    """The one answer of all events."""
    choices, usage = [Choice() for _ in range(count)], Usage()
    async for index, event in events:
        if event["event"] == "text":
            choices[index].text += event["text"]
            choices[index].logprobs += event.get("logprobs", [])
        else:
            _count(usage, event)
            choices[index].reason = event["reason"]
    return form.whole(choices, usage)


async def stream(
    form: Form, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]], usage_wanted: bool
) -> AsyncIterator[bytes]:
    """Server-sent events; an error after the beginning is the last of them."""
    usage, opened = Usage(), set[int]()

    def lines(index: int, event: Event) -> list[bytes]:
        out = []
        if index not in opened:
            opened.add(index)
            opening = form.opening(index)
            out += [] if opening is None else [sse(opening)]
        if event["event"] == "text":
            out.append(sse(form.piece(index, event["text"], event.get("logprobs", []))))
        else:
            _count(usage, event)
            out.append(sse(form.closing(index, event["reason"])))
        return out

    try:
        yield b"".join(lines(*first))
        async for index, event in events:
            yield b"".join(lines(index, event))
        if usage_wanted:
            yield sse({**form.head(True), "choices": [], "usage": usage.body()})
    except Problem as error:
        yield sse(error.body())
    yield b"data: [DONE]\n\n"


def _count(usage: Usage, event: Event) -> None:
    usage.written += event["tokens"]
    if event["index"] == 0:
        usage.prompt += event["prompt_tokens"]


def sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"

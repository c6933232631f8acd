"""The process that holds one model: opens it, checks it, answers messages.

Messages are lines of JSON over one socket. A request has an `id`, and every event of its answer has it too:

    {"id", "op": "generate", …}  ->  text …, end (one a choice)       {"id", "op": "cancel"}
    {"id", "op": "predict" | "embed" | "words" | "find" | "ask" | "score", "rows"}  ->  result
    {"id", "op": "stats"}  ->  result
    error: kind input (400), busy (429), server (500)

It is a process of its own so that a crash, or a kill, takes no server with it, and a new version can be loaded beside the old.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from zenspeed.errors import InputError
from zenspeed.retrieve.embed import open_reader
from zenspeed.serve import native
from zenspeed.serve.answer import Answer
from zenspeed.serve.batching import Batcher, Busy, Request, Sampling
from zenspeed.serve.compiled import build, library_path
from zenspeed.serve.core import Core
from zenspeed.serve.gate import check, open_rows
from zenspeed.serve.opened import Opened, open_model
from zenspeed.serve.plain import PlainCore
from zenspeed.serve.predicting import Predictor, row_of, without_each
from zenspeed.serve.prompts import flatten
from zenspeed.serve.vectors import encode_vector

PROBES = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def add(a, b):\n    return a + b\n",
    "今天天气很好，我们去公园散步。",
    "In 1987 the price was 4.50 dollars; today it is 12.",
)
Give = Callable[[dict[str, Any]], None]


class Worker:
    """One opened model that answers messages.

    Args:
        options: weights (fp32, bf16, int8), max_streams, max_queue, max_tokens (in all streams together), threads, cache
            (folder of the compiled kernel), kernel (false: plain torch only), seconds (of a request at most), reader (folder
            of the model that reads answers out of an index).
        give: gets events, from several threads.
    """

    def __init__(self, opened: Opened, options: dict[str, Any], give: Give) -> None:
        self.opened, self._options, self._give = opened, options, give
        self._batcher: Batcher | None = None
        self._predictor: Predictor | None = None
        self._steps: list[dict[str, Any]] = []  # events of a step, given out together
        self._keys: dict[str, set[str]] = {}
        self.gate: dict[str, Any] = {}
        if opened.kind == "language_model":
            self._start_generation()
            self._predictor = Predictor(opened)  # of prompts that are scored
        else:
            if opened.task is not None:
                cache = Path(options["cache"]) if options["kernel"] else None
                self.opened, self.gate = open_rows(opened, options["weights"], PROBES, cache)
            reader = options.get("reader") if opened.kind == "index" else None
            self._predictor = Predictor(self.opened, open_reader(Path(reader)) if reader else None)

    def _start_generation(self) -> None:
        opened, options = self.opened, self._options
        config: Any = opened.model.config
        tokens = options.get("max_tokens") or _default_tokens(config, options["max_streams"])
        plain = PlainCore(opened.model, max_tokens=tokens)
        self._batcher = Batcher(
            plain, max_streams=options["max_streams"], max_queue=options["max_queue"], after_step=self._flush
        )
        self.gate = {"core": plain.kind, "weights": "fp32", "why": "kernel off"}
        if options["kernel"]:
            obstacle = native.obstacle(opened.model)
            if obstacle is not None:
                self.gate["why"] = obstacle
            elif options["weights"] == "fp32" and not library_path(Path(options["cache"]), native.SOURCE).exists():
                self.gate["why"] = "the kernel is being compiled"  # meanwhile torch answers
                threading.Thread(target=self._build_meanwhile, args=(tokens,), daemon=True).start()
            else:
                self._use_kernel(tokens)
        if self.gate["core"] == plain.kind and options["weights"] != "fp32":
            raise InputError(f"--weights {options['weights']}: needs the kernel, which cannot be used: {self.gate['why']}")

    def _build_meanwhile(self, tokens: int) -> None:
        try:
            self._use_kernel(tokens)
        except InputError as error:  # torch goes on answering, and says why
            self.gate = {**self.gate, "why": str(error)}
        self._give({"event": "info", **self.info})

    def _use_kernel(self, tokens: int) -> None:
        assert self._batcher is not None
        library = build(Path(self._options["cache"]), native.SOURCE)
        if library is None:
            self.gate["why"] = "no C++ compiler found, or it failed"
            return
        opened, weights = self.opened, self._options["weights"]
        core: Core = native.NativeCore(
            opened.model, library, max_tokens=tokens, weights=weights, threads=self._options["threads"]
        )
        assert opened.prompts is not None
        probes = [opened.prompts.completion(text)[:24] for text in PROBES]
        self.gate = check(opened.model, core, weights, [p for p in probes if p])
        self._batcher.use(core)

    @property
    def info(self) -> dict[str, Any]:
        """What the server tells of the model."""
        template = self.opened.prompts is not None and self.opened.prompts.has_template
        return {
            "endpoints": list(self.opened.endpoints),
            "card": self.opened.card,
            "gate": self.gate,
            "chat_template": template,
        }

    def close(self) -> None:
        if self._batcher is not None:
            self._batcher.close()
        if self._predictor is not None:
            self._predictor.close()

    # Messages ---------------------------------------------------------------------------------------------------------

    def handle(self, message: dict[str, Any]) -> None:
        """Answers one message; what goes wrong becomes an event."""
        key = message["id"]
        try:
            getattr(self, f"_on_{message['op']}")(key, message)
        except InputError as error:
            self._give({"id": key, "event": "error", "kind": "input", "message": str(error)})
        except Busy as error:
            self._give({"id": key, "event": "error", "kind": "busy", "message": str(error), "seconds": error.seconds})
        except Exception as error:
            self._give({"id": key, "event": "error", "kind": "server", "message": type(error).__name__})

    def _on_generate(self, key: str, message: dict[str, Any]) -> None:
        assert self._batcher is not None
        assert self.opened.prompts is not None
        tokens, stop = self._prompt(message)
        if message.get("max_tokens") == 0:
            return self._write_nothing(key, message["n"], tokens)
        sampling = message["sampling"]
        room = self._batcher.core.context - len(tokens)
        wanted = min(message.get("max_tokens") or room, max(room, 1))
        requests = []
        for index in range(message["n"]):
            assert self.opened.tokenizer is not None
            answer = Answer(self.opened.tokenizer, self._events(key, index, len(tokens)), stop)
            bias = {int(token): value for token, value in (sampling.get("bias") or {}).items()}
            how = Sampling(**{**sampling, "bias": bias, "seed": (sampling["seed"] + index) % 2**63})
            self._check_tokens(bias, "logit_bias")
            requests.append(
                Request(
                    f"{key}#{index}", message["client"], tokens, wanted, answer.token, answer.end, how,
                    frozenset() if message.get("ignore_end") else self.opened.stop_tokens, self._options["seconds"],
                )
            )  # fmt: skip
        self._keys[key] = {request.key for request in requests}
        try:
            self._batcher.submit(requests)
        except (InputError, Busy):
            del self._keys[key]
            raise
        return None

    def _write_nothing(self, key: str, count: int, tokens: list[int]) -> None:
        """Empty answers to a prompt that is right: it is checked and counted."""
        self._check_length(tokens)
        for index in range(count):
            end = {"event": "end", "reason": "length", "tokens": 0, "prompt_tokens": len(tokens)}
            self._give({"id": key, "index": index, **end})

    def _check_length(self, tokens: list[int]) -> None:
        assert self._batcher is not None
        if not 0 < len(tokens) <= self._batcher.core.context:
            raise InputError(f"prompt: {len(tokens)} tokens; the model reads from 1 to {self._batcher.core.context}")

    def _prompt(self, message: dict[str, Any]) -> tuple[list[int], list[str]]:
        prompts, stop = self.opened.prompts, list(message.get("stop") or [])
        assert prompts is not None
        if "messages" in message:
            return prompts.chat(flatten(message["messages"])), [*stop, *prompts.stop]
        prompt = message["prompt"]
        if isinstance(prompt, str):
            return prompts.completion(prompt), stop
        self._check_tokens(prompt, "prompt")
        return list(prompt), stop

    def _check_tokens(self, tokens: Iterable[int], name: str) -> None:
        model: Any = self.opened.model
        if wrong := [t for t in tokens if not 0 <= t < model.vocab_size]:
            raise InputError(f"{name}: token {wrong[0]} is not in 0 … {model.vocab_size - 1}")

    def _events(self, key: str, index: int, prompt_tokens: int) -> Give:
        def give(event: dict[str, Any]) -> None:
            self._steps.append({"id": key, "index": index, **event})
            if event["event"] == "end":
                self._steps[-1]["prompt_tokens"] = prompt_tokens
                self._keys.get(key, set()).discard(f"{key}#{index}")
                if not self._keys.get(key):
                    self._keys.pop(key, None)

        return give

    def _flush(self) -> None:
        events, self._steps = self._steps, []
        for event in events:
            self._give(event)

    def _on_cancel(self, key: str, message: dict[str, Any]) -> None:
        for request in list(self._keys.get(key, ())):
            assert self._batcher is not None
            self._batcher.cancel(request)

    def _on_predict(self, key: str, message: dict[str, Any]) -> None:
        self._predict(key, "predict", [row_of(self.opened, row) for row in message["rows"]])

    def _on_embed(self, key: str, message: dict[str, Any]) -> None:
        self._predict(key, "embed", message["rows"])

    def _on_find(self, key: str, message: dict[str, Any]) -> None:
        """Rows of query and k: the passages of the index."""
        self._predict(key, "find", message["rows"])

    def _on_ask(self, key: str, message: dict[str, Any]) -> None:
        """Rows of question and k: an answer out of the index."""
        self._predict(key, "ask", message["rows"])

    def _on_score(self, key: str, message: dict[str, Any]) -> None:
        """How likely the tokens of prompts are, with the `top` likeliest in their places."""
        rows = []
        for prompt in message["rows"]:
            tokens, _ = self._prompt({"prompt": prompt})
            self._check_length(tokens)
            begin = len(tokens) - len(self._prompt({"prompt": ""})[0]) if isinstance(prompt, str) else len(tokens)
            rows.append({"tokens": tokens, "begin": len(tokens) - begin, "top": message["top"]})
        self._predict(key, "score", rows, sum(len(row["tokens"]) for row in rows))

    def _predict(self, key: str, work: str, rows: list[Any], counted: int | None = None) -> None:
        """`counted`: tokens that are read; default: those of the rows' texts."""
        assert self._predictor is not None
        tokens = self._tokens(rows) if counted is None else None
        if tokens is not None:
            counted = sum(len(text) for texts in tokens for text in texts)

        def done(results: list[Any] | Exception) -> None:
            if isinstance(results, Exception):
                kind = "input" if isinstance(results, InputError) else "server"
                text = str(results) if kind == "input" else type(results).__name__
                self._give({"id": key, "event": "error", "kind": kind, "message": text})
                return
            values = [encode_vector(r) for r in results] if work == "embed" else results
            self._give({"id": key, "event": "result", "value": values, "prompt_tokens": counted or 0})

        self._predictor.submit(work, rows, done, tokens)

    def _tokens(self, rows: list[Any]) -> list[list[np.ndarray]] | None:
        """Of the texts of each row; None of an index that is searched by words."""
        if self.opened.tokenizer is None:
            return None
        texts = [_texts(row) for row in rows]
        tokens = iter(self.opened.tokenizer.encode_batch([text for of_row in texts for text in of_row]))
        return [[next(tokens) for _ in of_row] for of_row in texts]

    def _on_words(self, key: str, message: dict[str, Any]) -> None:
        """Which words mattered: how much of the label's probability goes with each that is left out."""
        assert self._predictor is not None
        assert self.opened.task is not None
        row = row_of(self.opened, message["rows"][0])
        column = self.opened.task.recipe.task.text
        words, texts = without_each(row[column])
        rows = [row, *({**row, column: text or " "} for text in texts)]

        def done(results: list[Any] | Exception) -> None:
            if isinstance(results, Exception):
                self._give({"id": key, "event": "error", "kind": "server", "message": type(results).__name__})
                return
            label, whole = results[0]["prediction"], results[0]["scores"]
            lost = [whole[label] - r["scores"][label] for r in results[1:]]
            pairs = [{"word": word, "weight": round(w, 6)} for word, w in zip(words, lost, strict=True)]
            self._give({"id": key, "event": "result", "value": [{**results[0], "words": pairs}], "prompt_tokens": 0})

        self._predictor.submit("predict", rows, done, self._tokens(rows))

    def _on_stats(self, key: str, message: dict[str, Any]) -> None:
        value: dict[str, Any] = {"memory_bytes": psutil.Process().memory_info().rss}
        if self._batcher is not None:
            b = self._batcher
            running, waiting = b.counts()
            room, free = b.core.room()
            value |= {
                "running": running, "waiting": waiting, "generated": b.generated, "prompted": b.prompted, "reused": b.reused,
                "steps": b.steps, "cache_tokens": room, "cache_free": free,
            }  # fmt: skip
        if self._predictor is not None and self._batcher is None:
            p = self._predictor
            value |= {"rows": p.rows, "batches": p.batches, "waiting": p.waiting}
        self._give({"id": key, "event": "result", "value": value})

    def wait_for_failure(self) -> None:
        """Returns when steps are no longer taken."""
        if self._batcher is not None:
            self._batcher.wait()


def _texts(row: Any) -> list[str]:
    return [row] if isinstance(row, str) else [v for v in row.values() if isinstance(v, str)]


def _default_tokens(config: Any, streams: int) -> int:
    """Room for all streams at full context, at most a quarter of the memory that is free now."""
    heads, width = getattr(config, "num_kv_heads", 1), getattr(config, "head_width", config.width)
    a_token = 2 * 4 * config.layers * heads * width
    most = psutil.virtual_memory().available // 4 // a_token
    return max(config.context, min(streams * config.context, most))


def main(descriptor: int) -> None:
    """Serves over the socket `descriptor`; the first line holds folder and options, the first event is ready or failed."""
    channel = socket.socket(fileno=descriptor)
    lines = channel.makefile("r", encoding="utf-8")
    lock = threading.Lock()

    def give(event: dict[str, Any]) -> None:
        data = (json.dumps(event) + "\n").encode()
        with lock:
            channel.sendall(data)

    started = time.monotonic()
    first = json.loads(lines.readline())
    try:
        if first["options"]["threads"]:
            torch.set_num_threads(first["options"]["threads"])
        worker = Worker(open_model(Path(first["folder"])), first["options"], give)
    except InputError as error:
        give({"event": "failed", "message": str(error)})
        sys.exit(2)
    give({"event": "ready", "seconds": time.monotonic() - started, **worker.info})
    if worker.opened.kind == "language_model":
        threading.Thread(target=_exit_with, args=(worker,), daemon=True).start()
    for line in lines:  # until the server goes
        worker.handle(json.loads(line))
    os._exit(0)


def _exit_with(worker: Worker) -> None:
    worker.wait_for_failure()
    os._exit(1)  # the server starts another


if __name__ == "__main__":
    main(int(sys.argv[1]))

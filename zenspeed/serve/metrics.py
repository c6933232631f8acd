"""Figures for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_KNOWN = (
    "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/classify", "/v1/translate", "/v1/summarize", "/v1/answer",
    "/v1/search", "/v1/models", "/health", "/ready", "/metrics",
)  # fmt: skip
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_OF_WORKERS = {
    "running": "Requests being answered", "waiting": "Requests waiting", "generated": "Tokens written since the worker started",
    "prompted": "Tokens of prompts read since the worker started", "reused": "Tokens of prompts found in the cache",
    "cache_tokens": "Tokens that the cache holds", "cache_free": "Tokens that the cache has room for",
    "memory_bytes": "Memory of the worker", "steps": "Steps taken since the worker started", "rows": "Rows answered",
    "batches": "Batches of rows",
}  # fmt: skip


class Metrics:
    """Counters of the server; those of workers are asked for when somebody looks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._requests = Counter("zenspeed_requests", "Requests by path and status", ["path", "status"], registry=r)
        self._seconds = Histogram("zenspeed_request_seconds", "Time of a request", ["path"], buckets=_SECONDS, registry=r)
        self._first = Histogram(
            "zenspeed_first_token_seconds", "Time to the first token", ["model"], buckets=_SECONDS, registry=r
        )
        self._tokens = Counter("zenspeed_tokens", "Tokens in answers and prompts", ["model", "kind"], registry=r)
        self._ready = Gauge("zenspeed_model_ready", "1 if the model answers", ["model"], registry=r)
        self._restarts = Gauge("zenspeed_worker_restarts", "Restarts of the worker", ["model"], registry=r)
        self._of_workers = {
            name: Gauge(f"zenspeed_worker_{name}", what, ["model"], registry=r) for name, what in _OF_WORKERS.items()
        }

    def request(self, path: str, status: int, seconds: float) -> None:
        path = path if path in _KNOWN else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        self._first.labels(model).observe(seconds)

    def tokens(self, model: str, prompt: int, written: int) -> None:
        self._tokens.labels(model, "prompt").inc(prompt)
        self._tokens.labels(model, "written").inc(written)

    def worker(self, model: str, ready: bool, restarts: int, stats: dict[str, Any]) -> None:
        self._ready.labels(model).set(ready)
        self._restarts.labels(model).set(restarts)
        for name, value in stats.items():
            if name in self._of_workers:
                self._of_workers[name].labels(model).set(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

"""The HTTP server: OpenAI's interface, the tasks', health, figures, and the page."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from zenspeed.errors import InputError
from zenspeed.serve import answers
from zenspeed.serve.deploy import Models, Served
from zenspeed.serve.guard import Guard
from zenspeed.serve.limits import Keys, Limits
from zenspeed.serve.metrics import Metrics
from zenspeed.serve.process import Gone, only
from zenspeed.serve.shapes import ChatRequest, CompletionRequest, Generation, Problem, SwapRequest
from zenspeed.serve.task_routes import add_task_routes

PAGE = Path(__file__).with_name("page")
_COLDEST = 1e-5  # below, the likeliest token is certain, and logits divided by it are no numbers
log = logging.getLogger("zenspeed.serve")


class Settings(NamedTuple):
    """What the command line decides."""

    limits: Limits = Limits()
    keys: Keys | None = None
    admin: Keys | None = None
    versions: Path | None = None
    """Folder whose folders may be swapped in."""
    page: bool = False
    log_prompts: bool = False


def create_app(models: Models, settings: Settings | None = None) -> FastAPI:
    """The server over `models`, which are started and stopped with it."""
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.by_name.values():
            served.current.backend.start()
        yield
        await asyncio.gather(*(served.stop() for served in models.by_name.values()))

    app = FastAPI(title="zenspeed", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_openai(app, models, settings, metrics)
    add_task_routes(app, models, settings.limits, metrics)
    _add_health(app, models, metrics)
    _add_admin(app, models, settings)
    if settings.page:
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_middleware(Guard, limits=settings.limits, keys=settings.keys, admin=settings.admin, metrics=metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error.body(), error.status, headers=headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")[:100]
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            place, message = "", f"the body is not JSON: {first.get('ctx', {}).get('error', '')}"
        elif first["type"] == "extra_forbidden":
            message = "unknown parameter"
        text = f"{place}: {message}" if place else message
        return JSONResponse(Problem(400, _printable(text), param=_printable(place) or None).body(), 400)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "no such place; see /docs", 405: "this place does not take this method; see /docs"}
        text = message.get(error.status_code, str(error.detail))
        return JSONResponse(Problem(error.status_code, text).body(), error.status_code, headers=error.headers)

    async def on_any(request: Request, error: Exception) -> Response:
        log.error("%s: %s", request.url.path[:100], type(error).__name__, exc_info=error)
        return JSONResponse(Problem(500, "the server failed; its log says more").body(), 500)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_any)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


# OpenAI's -------------------------------------------------------------------------------------------------------------


def _add_openai(app: FastAPI, models: Models, settings: Settings, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models of this server; `zenspeed` holds what each can do and how it was checked."""
        return {"object": "list", "data": [_model_entry(s) for s in models.by_name.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in models.by_name:
            raise Problem(404, f"no such model; there are: {', '.join(models.by_name)}", param="model", code="model_not_found")
        return _model_entry(models.by_name[name])

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues a prompt, or several."""
        served, prompts = models.find(body.model, "completions"), body.prompts()
        if not prompts or (len(prompts) > settings.limits.inputs):
            raise Problem(400, f"prompt: {len(prompts)} prompts; at least 1, at most {settings.limits.inputs}", param="prompt")
        common = _common(body, 16 if body.max_tokens is None else body.max_tokens, body.logprobs, request, settings)
        sent = [{**common, "prompt": prompt} for prompt in prompts]
        echo = [prompt for prompt in await _echoed(served, body, prompts) for _ in range(common["n"])] if body.echo else []
        form = answers.Form(False, served.name, body.logprobs is not None, echo)
        return await _respond(form, body, answers.run(served, sent, metrics), len(sent) * common["n"], request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        served = models.find(body.model, "chat")
        top = (body.top_logprobs or 0) if body.logprobs else None
        common = _common(body, body.max_completion_tokens or body.max_tokens, top, request, settings)
        written = [m.model_dump(exclude_none=True, include={"role", "content"}) for m in body.messages]
        for message in written:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
        form = answers.Form(True, served.name, bool(body.logprobs))
        return await _respond(form, body, answers.run(served, [{**common, "messages": written}], metrics), common["n"], request)


async def _echoed(served: Served, body: CompletionRequest, prompts: list[Any]) -> list[answers.Choice]:
    """The prompts as choices that came before, their tokens scored where that is asked for."""
    if body.logprobs is None and all(isinstance(prompt, str) for prompt in prompts):
        return [answers.Choice(prompt) for prompt in prompts]
    scored, _ = await answers.rows(served, {"op": "score", "rows": prompts, "top": body.logprobs or 0})
    return [answers.Choice(one["text"], one["entries"]) for one in scored]


def _model_entry(served: Served) -> dict[str, Any]:
    about = {**served.info, **served.describe(), "ready": served.ready}
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "zenspeed", "zenspeed": about}


def _common(
    body: Generation, max_tokens: int | None, logprobs: int | None, request: Request, settings: Settings
) -> dict[str, Any]:
    """What a worker is told of any generation."""
    n = body.n or 1
    if n > settings.limits.choices:
        raise Problem(400, f"n: {n} choices; at most {settings.limits.choices}", param="n")
    if settings.log_prompts:
        log.info("prompt %s", body.model_dump_json(exclude_none=True))
    seed = random.getrandbits(62) if body.seed is None else body.seed
    temperature = 1.0 if body.temperature is None else body.temperature
    sampling = {
        "temperature": temperature if temperature >= _COLDEST else 0.0, "top_p": body.top_p, "top_k": body.top_k,
        "seed": seed % 2**63, "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0, "bias": body.logit_bias or {}, "logprobs": logprobs,
    }  # fmt: skip
    return {
        "op": "generate", "client": request.state.client, "n": n, "max_tokens": max_tokens, "stop": body.stops(),
        "ignore_end": body.ignore_eos,
        "sampling": sampling,
    }  # fmt: skip


async def _respond(
    form: answers.Form, body: Generation, events: AsyncGenerator[tuple[int, answers.Event], None], count: int, request: Request
) -> Response:
    if not body.stream:
        return JSONResponse(await while_connected(request, lambda: answers.whole(form, count, events)))
    first = await while_connected(request, lambda: anext(events))  # errors before the first token have a status of their own
    usage = body.stream_options is not None and body.stream_options.include_usage

    async def chunks() -> AsyncIterator[bytes]:
        async with aclosing(events):
            async for chunk in answers.stream(form, first, events, usage):
                yield chunk

    return StreamingResponse(chunks(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def while_connected(request: Request, work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `work`, which is cancelled when the client leaves."""
    task = asyncio.ensure_future(work())
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=0.25)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise Problem(499, "the client left")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# Health, figures, versions --------------------------------------------------------------------------------------------


def _add_health(app: FastAPI, models: Models, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The server runs."""
        return {"status": "ok"}

    @app.get("/ready", response_model=None)
    async def ready() -> Response:
        """All models answer; 503 until they do."""
        states = {s.name: s.current.backend.state for s in models.by_name.values()}
        good = all(state == "ready" for state in states.values())
        return JSONResponse({"ready": good, "models": states}, 200 if good else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        for served in models.by_name.values():
            stats: dict[str, Any] = {}
            try:
                async with asyncio.timeout(2):
                    stats = (await only(served.current.backend.ask({"op": "stats"})))["value"]
            except (Gone, TimeoutError):
                pass
            metrics.worker(served.name, served.ready, served.current.backend.restarts, stats)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse((PAGE / "docs.html").read_text(encoding="utf-8"))


def _add_admin(app: FastAPI, models: Models, settings: Settings) -> None:
    if settings.admin is None:
        return

    @app.post("/admin/swap")
    async def swap(body: SwapRequest) -> dict[str, Any]:
        """Loads another version of a model beside the current one."""
        served = _named(body.model)
        folders = {} if settings.versions is None else {p.name: p for p in settings.versions.iterdir() if p.is_dir()}
        if body.version not in folders:  # looked up, never joined to a path
            raise Problem(400, f"version: no such folder; there are: {', '.join(sorted(folders)) or 'none'}", param="version")
        try:
            await served.swap(folders[body.version], body.canary)
        except InputError as error:
            raise Problem(409, str(error)) from None
        return served.describe()

    @app.post("/admin/roll-back/{name}")
    async def roll_back(name: str) -> dict[str, Any]:
        """Takes the version on trial away."""
        served = _named(name)
        if served.candidate is None:
            raise Problem(409, f"{served.name}: no version is on trial")
        served.roll_back("by request")
        return served.describe()

    @app.get("/admin/models")
    async def describe() -> dict[str, Any]:
        return {name: served.describe() for name, served in models.by_name.items()}

    def _named(name: str) -> Served:
        if name not in models.by_name:
            raise Problem(404, f"no such model; there are: {', '.join(models.by_name)}", code="model_not_found")
        return models.by_name[name]

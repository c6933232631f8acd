"""`zenspeed serve`: models behind an HTTP interface."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from zenspeed.cli.app import app, run_here
from zenspeed.errors import InputError, missing


@app.command()
def serve(
    folders: Annotated[
        list[str], typer.Argument(help="Runs, Hugging Face folders, indexes; NAME=FOLDER gives a name.", show_default=False)
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of the machine's.")] = "127.0.0.1",
    page: Annotated[bool, typer.Option("--page", help="Also a page for people, at /.")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="Lines `key` or `name key`: one is then needed for /v1.")] = None,
    weights: Annotated[
        Literal["fp32", "bf16", "int8"],
        typer.Option(
            help="fp32 answers as trained; bf16 and int8 are smaller and faster (int8: of what writes; the rest takes bf16)."
        ),
    ] = "fp32",
    canary: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="With NAME=OLD NAME=NEW: the share of the new one while on trial, as 10%."),
    ] = None,
    versions: Annotated[
        Path | None, typer.Option(help="Folder of folders that may be swapped in while serving (POST /admin/swap).")
    ] = None,
    reader: Annotated[
        Path | None, typer.Option(help="Of indexes: the run or folder that reads answers; default: their column answer.")
    ] = None,
    admin_key_file: Annotated[Path | None, typer.Option(help="Keys of /admin, as --api-key-file.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each model; default: all cores.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Answers written at a time.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests of a model that may wait; more get 429.")] = 256,
    cache_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens of all streams together; default: what a quarter of the memory holds.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="A request takes at most.")] = 600.0,
    requests_a_minute: Annotated[int, typer.Option(min=0, help="Of one client; 0: any number.")] = 600,
    body_bytes: Annotated[int, typer.Option(min=1024, help="Of one request.")] = 2**20,
    drain_seconds: Annotated[float, typer.Option(min=0, help="After SIGTERM, answers under way have so long to end.")] = 60.0,
    kernel: Annotated[bool, typer.Option(help="Compile the fast kernel where it can be used.")] = True,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write requests to the log; off by default.")] = False,
) -> None:
    """Answer over HTTP as OpenAI's interface does, in many streams at a time."""
    try:
        import fastapi  # noqa: F401 – only whether it is there
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serve: needs {error.name}: pip install 'zenspeed[serve]'") from None
    from zenspeed.serve.limits import Keys, Limits
    from zenspeed.serve.server import Plan, serve_forever

    options = {
        "weights": weights, "max_streams": streams, "max_queue": queue, "max_tokens": cache_tokens, "threads": threads,
        "cache": str(Path.home() / ".cache" / "zenspeed" / "kernels"), "kernel": kernel, "seconds": seconds,
        "reader": None if reader is None else str(reader.resolve()),
    }  # fmt: skip
    plan = Plan(
        folders=[_named(folder) for folder in folders],
        host=host,
        port=port,
        share=None if canary is None else _share(canary),
        options=options,
        limits=Limits(requests_a_minute=requests_a_minute, body_bytes=body_bytes),
        keys=None if api_key_file is None else Keys(api_key_file),
        admin=None if admin_key_file is None else Keys(admin_key_file),
        versions=versions,
        page=page,
        log_prompts=log_prompts,
        drain_seconds=drain_seconds,
    )
    raise typer.Exit(serve_forever(plan))


def _named(given: str) -> tuple[str, Path]:
    name, equals, folder = given.partition("=")
    path = run_here(Path(folder if equals else given)) or Path()
    name = name if equals else path.resolve().name
    if not path.is_dir():
        raise missing(path, "model")
    if not name or len(name) > 200 or not name.isprintable():
        raise InputError(f"{given}: {name!r} is no name for a model; give NAME=FOLDER")
    return name, path


def _share(given: str) -> float:
    text = given.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InputError(f"--canary {given}: a share of the requests, such as 10% or 0.1")
    return value

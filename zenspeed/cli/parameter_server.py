"""parameter-server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zenspeed.cli.app import app
from zenspeed.errors import InputError


@app.command()
def parameter_server(
    key_file: Annotated[Path, typer.Option(help="File with the secret that workers must have: openssl rand -hex 32 > key.")],
    folder: Annotated[Path, typer.Option(help="Where it keeps its journal; a server started here again goes on from it.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 is any that is free.")] = "127.0.0.1:0",
    sync: Annotated[bool, typer.Option("--sync", help="Wait for the disk before a share is acknowledged.")] = False,
    end_with_input: Annotated[bool, typer.Option("--end-with-input", hidden=True)] = False,
) -> None:
    """Hold weights and optimizer of a run for workers: zenspeed train recipe.yaml with parallel.server.addresses."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--listen {listen}: expected HOST:PORT, such as 0.0.0.0:7000")
    from zenspeed.server.client import read_key

    key = read_key(key_file)
    from zenspeed.server.serve import listen as listen_at
    from zenspeed.server.serve import serve

    if end_with_input:
        from zenspeed.launch.local import end_with_input as watch

        watch()
    listener = listen_at(host.strip("[]"), int(port))
    place = f"{host}:{listener.getsockname()[1]}"
    serve(listener, key, folder, sync=sync, ready=lambda: print(f"listening at {place}", flush=True))

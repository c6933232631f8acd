"""generate, info."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from zenspeed.cli.app import CheckpointName, RunFolder, app
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.models.transformer import Transformer


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens that add up to p.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which to stop; may be given several times.")] = None,
    checkpoint: CheckpointName = None,
) -> None:
    """Continue a prompt, streaming to the terminal."""
    from zenspeed.generate import generate_text
    from zenspeed.run import open_run

    opened = open_run(run, checkpoint)
    if opened.recipe.task.kind != "language_model":
        raise InputError(f"{run}: was trained for {opened.recipe.task.kind}, it does not write text; use zenspeed evaluate")
    pieces = generate_text(
        cast("Transformer", opened.model),
        opened.tokenizer,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or [],
    )
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def info() -> None:
    """What this machine has, and what will and will not work on it, with the reason."""
    from zenspeed.info import report

    report()

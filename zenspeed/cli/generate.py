"""generate, info."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from zenspeed.cli.app import CheckpointName, RunFolder, app
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.models.transformer import Transformer
    from zenspeed.run import OpenRun


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="Text to continue, to answer, to translate or to summarize.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most; default: 100.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens that add up to p.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which to stop; may be given several times.")] = None,
    control: Annotated[list[str] | None, typer.Option(help="Of a seq2seq: COLUMN=VALUE, such as to=en.")] = None,
    length: Annotated[int | None, typer.Option(help="Of a seq2seq with task.length: words that are asked for.")] = None,
    beams: Annotated[int | None, typer.Option(help="Of a seq2seq: texts that are followed at once.")] = None,
    checkpoint: CheckpointName = None,
) -> None:
    """Continue a prompt, answer it, or write what a model of pairs makes of it."""
    from zenspeed.generate import generate_text
    from zenspeed.run import open_run

    opened = open_run(run, checkpoint)
    kind = opened.recipe.task.kind
    if kind == "seq2seq":
        print(_write(opened, prompt, control or [], length, beams, max_tokens))
        return
    for name, value in (("--control", control), ("--length", length), ("--beams", beams)):
        if value:
            raise InputError(f"{name}: is for a run of seq2seq; {run} was trained for {kind}")
    if kind not in ("language_model", "chat"):
        raise InputError(f"{run}: was trained for {kind}, it does not write text; use zenspeed evaluate")
    start = None if kind == "language_model" else _question(opened, prompt)
    pieces = generate_text(
        cast("Transformer", opened.model),
        opened.tokenizer,
        prompt if start is None else start,
        max_tokens=max_tokens or 100,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or [],
    )
    if start is None:
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _question(opened: OpenRun, prompt: str) -> list[int]:
    """The tokens that an answer to `prompt` follows."""
    from zenspeed.text.chat import ChatTemplate

    messages = [{"role": "user", "content": prompt}]
    return ChatTemplate(opened.tokenizer).encode(messages, add_generation_prompt=True).tokens.tolist()


def _write(
    opened: OpenRun, prompt: str, control: list[str], length: int | None, beams: int | None, max_tokens: int | None
) -> str:
    from contextlib import nullcontext

    from zenspeed.tasks.base import Place
    from zenspeed.tasks.seq2seq import Seq2SeqTask

    recipe = opened.recipe
    row: dict[str, object] = {recipe.task.text: prompt}
    for pair in control:
        column, found, value = pair.partition("=")
        if not found or column not in recipe.task.control:
            known = ", ".join(f"{name}=…" for name in recipe.task.control) or "none"
            raise InputError(f"--control: {pair!r} is no control of this run; it has {known}")
        row[column] = value
    if length is not None and recipe.task.length is None:
        raise InputError("--length: this run was trained without task.length, it knows no length")
    if recipe.task.length is not None:
        row[recipe.task.length] = length
    changes = {name: value for name, value in (("beams", beams), ("max_tokens", max_tokens)) if value is not None}
    recipe = recipe.model_copy(update={"decode": recipe.decode.model_copy(update=changes)})
    task = Seq2SeqTask.of_run(recipe, opened.tokenizer)
    return str(task.predict(opened.model, [row], Place(nullcontext()))[0]["prediction"])


@app.command()
def info() -> None:
    """What this machine has, and what will and will not work on it, with the reason."""
    from zenspeed.info import report

    report()

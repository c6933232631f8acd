"""explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.cli.app import CheckpointName, app, run_here
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.explain.trace import Trace


@app.command()
def explain(
    model: Annotated[
        Path | None,
        typer.Argument(callback=run_here, help="A run's folder, or one of Hugging Face layout.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Argument(help="The sentence.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Of an encoder-decoder: what it has written so far.")] = None,
    part: Annotated[str | None, typer.Option(help="Only steps of this part, such as 'block 1' or head.")] = None,
    columns: Annotated[int, typer.Option(min=1, help="Columns of a table in the terminal.")] = 6,
    html: Annotated[Path | None, typer.Option(help="Writes the page with every number to this file.")] = None,
    article: Annotated[
        bool, typer.Option("--article", help="The article's own worked example, its arithmetic put right.")
    ] = False,
    checkpoint: CheckpointName = None,
) -> None:
    """Every number of a sentence in a model: embedding, positions, scores, softmax, heads, feed-forward, checked."""
    if article == (model is not None) or (model is not None and text is None):
        raise InputError("explain: give a model and a sentence, or --article alone")
    from zenspeed.explain import show

    if article:
        from zenspeed.explain.article import claims, consistent

        found = claims()
        lines = show.claim_lines(found)
        wrong = sum(not claim.holds for claim in found)
        notes = [f"{wrong} of the {len(found)} computed lines of section 4.3 are wrong:", *lines]
        _show("The worked example of section 4.3", consistent(), notes, part, columns, html)
        return
    from zenspeed.explain.model import explain as run
    from zenspeed.explain.model import open_model

    assert model is not None and text is not None
    try:
        trace = run(open_model(model, checkpoint), text, target)
    except ArithmeticError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    _show(f"{model.name}: {text}", trace, [show.checks(trace)], part, columns, html)


def _show(title: str, trace: Trace, notes: list[str], part: str | None, columns: int, html: Path | None) -> None:
    from zenspeed.config import write_atomically
    from zenspeed.explain import show

    parts = list(dict.fromkeys(step.part for step in trace.steps))
    if part is not None and not any(part in name for name in parts):
        raise InputError(f"--part {part}: no such part; there are: {', '.join(parts)}")
    print(title)
    for line in show.terminal(trace, columns, part):
        print(line)
    print("\n" + "\n".join(notes))
    if html is not None:
        try:
            write_atomically(html, show.page(title, trace, notes, part))
        except OSError as error:
            raise InputError(f"{html}: cannot be written: {error.strerror}") from None
        print(f"every number: {html}")

"""tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.cli.app import Sets, Source, app, recipe_of
from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.recipe import Recipe


@app.command()
def tune(
    source: Source = None,
    sets: Sets = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW..HIGH", help="A key to be searched, or KEY=[A, B]; default: the learning rates."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Figure to be good: loss, accuracy, seconds, NAME:max …; several: a front."),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the search; default: 12, or as --minutes allow.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.5, help="Wall time of the whole.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of a trial; default: the recipe's, or what fits.")] = None,
    ranks: Annotated[int | None, typer.Option("-n", "--ranks", min=1, help="Processes of a run; default: the fastest.")] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Trials at once; default: 2, if cores allow.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds that the winner is verified with.")] = 3,
    only: Annotated[str | None, typer.Option(help="Parts of layout,rate,search,verify; default: all.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Also cross-validates recipe and tuning together: the search is nested in folds.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where it is written, and gone on with; default: runs/tune-NAME.")] = None,
) -> None:
    """A recipe in, a better recipe out: layout, batch, learning rate, and a search over any of its keys."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("tune: needs optuna; pip install 'zenspeed[tune]'") from None
    from zenspeed.tune.page import lines_of
    from zenspeed.tune.search import Interrupted
    from zenspeed.tune.tune import PARTS, Options, nested
    from zenspeed.tune.tune import tune as run

    def make(more: Sequence[str]) -> Recipe:
        return recipe_of(source, [*(sets or []), *more])

    place = folder or Path("runs") / f"tune-{Path(source or 'recipe').stem.strip('*')}"
    parts = PARTS if only is None else tuple(part.strip() for part in only.split(","))
    options = Options(place, search or [], sets or [], metric or ["loss"], trials, minutes, steps, ranks, jobs, seeds, parts)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        record = run(make, options, source or "recipe", say)
        if folds is not None:
            found = nested(make([]), options, folds, say)
            name = options.metrics[0].partition(":")[0]
            figure = next((f for f in found["figures"] if f["name"] == name), None)
            if figure is not None:
                low, high = figure["low"], figure["high"]
                print(f"tuned and tested in {folds} folds: {name} {figure['value']:.5g} ({low:.5g} … {high:.5g})")
    except Interrupted:
        import json

        record = json.loads((place / "tune.json").read_text(encoding="utf-8"))
        print("\nstopped; the best so far:\n" + "\n".join(lines_of(record)))
        print(f"{place / 'tuned.yaml'}; the same command goes on")
        raise typer.Exit(130) from None
    print("\n" + "\n".join(lines_of(record)))
    launch = record.get("layout", {}).get("ranks", ranks or 1)
    with_ranks = f"launch -n {launch} " if launch > 1 else ""
    print(f"\n{place / 'tune.html'}\nzenspeed {with_ranks}train {place / 'tuned.yaml'}")

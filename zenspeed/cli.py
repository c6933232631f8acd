"""The command line. Every verb imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.process
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from zenspeed.errors import InputError

if TYPE_CHECKING:
    from zenspeed.models.transformer import Transformer
    from zenspeed.recipe import Recipe

app = typer.Typer(
    help="Train a language model and put it to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[
    str | None, typer.Argument(help="A recipe (.yaml), or a text: file, folder, glob, python-docs.", show_default=False)
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Changes any key of the recipe.")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)]
CheckpointName = Annotated[str | None, typer.Option(help="latest, best, or a step's folder; default: latest.")]


def main() -> NoReturn:
    """Runs the command line; what the user can put right is said in a line or two and ends with code 2."""
    # Threads that wait for each other spin for microseconds, not milliseconds: as fast on a quiet machine, and three times as
    # fast on one that is shared (docs/LOG.md). Read by OpenMP when torch is imported, so it is set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _recipe(source: str | None, sets: list[str] | None) -> Recipe:
    from zenspeed.config import load
    from zenspeed.recipe import Recipe

    if source is None or not source.endswith((".yaml", ".yml")):
        return load(Recipe, None, sets or [], base={"data": {"source": source}} if source else {})
    return load(Recipe, Path(source), sets or [])


@app.command()
def train(source: Source = None, sets: Sets = None) -> None:
    """Train a model from a text or a recipe."""
    recipe = _recipe(source, sets)
    preparing = _prepare_meanwhile(recipe)
    from zenspeed.train import train as run

    if preparing is not None:
        preparing.join()
    _report(run(recipe))


def _prepare_meanwhile(recipe: Recipe) -> multiprocessing.process.BaseProcess | None:
    """Prepares the data in a process of its own while this one imports torch: the first step comes two seconds earlier.

    The process is forked before torch is there. What goes wrong in it is not lost: training prepares again, finds the data
    done or meets the same error. None where another rank does it, or where processes cannot be forked.
    """
    if recipe.task.kind != "language_model":
        return None
    if os.environ.get("RANK", "0") != "0" or "fork" not in multiprocessing.get_all_start_methods():
        return None
    process = multiprocessing.get_context("fork").Process(target=_prepare_quietly, args=(recipe,), daemon=True)
    process.start()
    return process


def _prepare_quietly(recipe: Recipe) -> None:
    from zenspeed.data.prepare import prepare as run

    with contextlib.suppress(InputError, KeyboardInterrupt):
        run(recipe, lambda message: print(message, flush=True))


@app.command()
def resume(run: RunFolder, checkpoint: CheckpointName = None, sets: Sets = None) -> None:
    """Go on with a run from its last checkpoint."""
    from zenspeed.checkpoint import Checkpoint, find_checkpoint
    from zenspeed.config import load
    from zenspeed.recipe import Recipe
    from zenspeed.run import recipe_of
    from zenspeed.train import train as train_recipe

    folder = find_checkpoint(run, checkpoint)
    recipe = recipe_of(Checkpoint(folder))
    recipe = load(Recipe, None, [*(sets or []), f"run.folder={json.dumps(str(run))}"], base=recipe.model_dump(mode="json"))
    _report(train_recipe(recipe, resume=folder))


def _report(result: object) -> None:
    from zenspeed.train import Result

    assert isinstance(result, Result)
    if result.interrupted:
        raise typer.Exit(130)
    folder = result.folder
    if os.environ.get("RANK", "0") == "0":
        files = [name for name in ("samples.md", "predictions.jsonl") if (folder / name).exists()]
        written = "".join(f"  {Path(name).stem:<11} {folder / name}\n" for name in files)
        more = f'\n  zenspeed generate {folder} --prompt "Return the"' if "samples.md" in files else ""
        print(f"""
run      {folder}
  loss curve  {folder / "loss.svg"}
  report      {folder / "report.md"}
{written}  recipe      {folder / "recipe.yaml"}
  metrics     {folder / "metrics.jsonl"}
go on with
  zenspeed resume {folder} --set train.steps={2 * result.step}
  zenspeed evaluate {folder}{more}""")


@app.command()
def prepare(source: Source = None, sets: Sets = None) -> None:
    """Train the tokenizer and write the token shards that training reads; training does this by itself when needed."""
    recipe = _recipe(source, sets)
    if recipe.task.kind != "language_model":
        raise InputError(f"prepare: rows of {recipe.task.kind} are encoded when training starts; go straight to zenspeed train")
    from zenspeed.data.prepare import prepare as run

    prepared = run(recipe, print)
    print(f"{prepared.folder}: {prepared.train.num_tokens:,} tokens to train on, {prepared.validation.num_tokens:,} held out")


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Data to evaluate on; default: the run's own validation split.")] = None,
    checkpoint: CheckpointName = None,
    predictions: Annotated[Path | None, typer.Option(help="JSON lines of predictions to score, without a model.")] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="With --predictions: a column whose values get figures of their own.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the figures to this file.")] = None,
) -> None:
    """Figures over the whole held-out data, or of a file of predictions, with 95 % intervals."""
    if (run is None) == (predictions is None):
        raise InputError("evaluate: give a run's folder, or --predictions FILE; one of them")
    if predictions is not None:
        from zenspeed.evaluate.score import lines_of, score_file

        found = score_file(predictions, slices or [])
        print("\n".join(lines_of(found)))
        _write_json(json_path, found)
        return
    if slices:
        raise InputError("--slice: is for --predictions; score the run's predictions.jsonl")
    assert run is not None
    from zenspeed.tasks.evaluate import evaluate_run

    figures = evaluate_run(run, data, checkpoint)
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure}")
    n = next(iter(figures.values())).n
    print(f"95 % intervals by bootstrap over {n:,} texts (seed 0)")
    print("\n".join(f"{name}: {figure.definition}" for name, figure in figures.items()))
    _write_json(json_path, {k: v._asdict() for k, v in figures.items()})


def _write_json(path: Path | None, content: object) -> None:
    if path is None:
        return
    from zenspeed.config import write_atomically

    try:
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Files of predictions, or runs that hold predictions.jsonl.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the comparisons to this file.")] = None,
) -> None:
    """Whether one system is better than another on the same rows: effect, interval, exact test."""
    from zenspeed.evaluate.compare import compare_files

    found = compare_files(files)
    print("\n".join(map(str, found)))
    matched = ", ".join(sorted({c.matched_by for c in found}))
    print(
        f"rows matched by {matched}; McNemar's exact test, p corrected for {len(found)} comparisons (Holm); bootstrap, seed 0"
    )
    _write_json(json_path, [c._asdict() for c in found])


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


@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def launch(
    context: typer.Context,
    num_processes: Annotated[
        int | None,
        typer.Option("-n", "--num-processes", "--num_gpus", "--nproc-per-node", min=1, help="Processes on each machine."),
    ] = None,
    module: Annotated[bool, typer.Option("-m", "--module", help="Run a module instead of a script.")] = False,
    as_deepspeed: Annotated[
        bool, typer.Option("--as-deepspeed", help="import deepspeed is zenspeed in the processes.")
    ] = False,
    no_local_rank: Annotated[
        bool, typer.Option("--no-local-rank", "--no_local_rank", help="Do not pass --local_rank (with --as-deepspeed).")
    ] = False,
    hostfile: Annotated[
        Path | None, typer.Option("-H", "--hostfile", help="Lines 'name slots=N': machines reached by ssh without a password.")
    ] = None,
    num_nodes: Annotated[int | None, typer.Option("--num-nodes", "--num_nodes", min=1, help="The first machines only.")] = None,
    include: Annotated[str, typer.Option("-i", "--include", help="Machines and slots: host1@host2:0,2.")] = "",
    exclude: Annotated[str, typer.Option("-e", "--exclude", help="All but these machines and slots.")] = "",
    no_ssh: Annotated[bool, typer.Option("--no-ssh", "--no_ssh", help="Start this machine's part only.")] = False,
    ssh_port: Annotated[int | None, typer.Option("--ssh-port", "--ssh_port", help="Port of ssh.")] = None,
    master_addr: Annotated[str | None, typer.Option("--master-addr", "--master_addr", help="Machine number 0.")] = None,
    master_port: Annotated[int | None, typer.Option("--master-port", "--master_port", help="Its port; default 29500.")] = None,
    nnodes: Annotated[str | None, typer.Option("--nnodes", help="Machines, or MIN:MAX; run this command on each.")] = None,
    node_rank: Annotated[int | None, typer.Option("--node-rank", "--node_rank", help="Number of this machine.")] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option("--rdzv-endpoint", "--rdzv_endpoint", help="HOST:PORT where machines meet, in any order.")
    ] = None,
    rdzv_id: Annotated[str | None, typer.Option("--rdzv-id", "--rdzv_id", help="Name of the run.")] = None,
    rdzv_backend: Annotated[str | None, typer.Option("--rdzv-backend", "--rdzv_backend", help="c10d or static.")] = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", "--max_restarts", min=0, help="Starts anew after a failure.")
    ] = 0,
    end_with_input: Annotated[bool, typer.Option("--end-with-input", hidden=True)] = False,
) -> None:
    """Run a verb, a script or a module in several processes: zenspeed launch -n 2 train recipe.yaml."""
    from zenspeed.launch.command import Options, start

    rdzv = {"endpoint": rdzv_endpoint, "id": rdzv_id, "backend": rdzv_backend}
    options = Options(
        num_processes=num_processes,
        module=module,
        as_deepspeed=as_deepspeed,
        local_rank_argument=not no_local_rank,
        num_nodes=num_nodes,
        hostfile=hostfile,
        include=include,
        exclude=exclude,
        master_address=master_addr,
        master_port=master_port,
        ssh=not no_ssh,
        ssh_port=ssh_port,
        nodes=nnodes,
        node_rank=node_rank,
        rdzv={k: v for k, v in rdzv.items() if v is not None},
        max_restarts=max_restarts,
        end_with_input=end_with_input,
    )
    if context.args[:1] == ["train"] and not module:  # a wrong recipe is refused once, before any process starts
        _check_recipe(context.args[1:])
    raise typer.Exit(start(options, context.args))


@app.command()
def shim() -> None:
    """Print the folder that makes `import deepspeed` zenspeed when it is on PYTHONPATH."""
    from zenspeed.launch.command import shim_folder

    print(shim_folder())


data_app = typer.Typer(help="Look at data before anything is trained on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.callback()
def data() -> None:
    """Look at data before anything is trained on it."""


@data_app.command("report")
def data_report(
    train: Annotated[str, typer.Argument(help="Rows: CSV, TSV, JSON lines, Parquet, a folder, a glob.", show_default=False)],
    test: Annotated[str | None, typer.Option(help="Rows of the test set; says what of it is in the training set.")] = None,
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder; default: one trained on the rows.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Writes the page to this file.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Writes the figures to this file.")] = None,
) -> None:
    """Lengths, duplicates, leakage, labels, language, odd rows, tokens, and the sequence length to take."""
    from zenspeed.config import write_atomically
    from zenspeed.data.report import report
    from zenspeed.data.report_page import page, terminal

    found = report(train, test, text, label, tokenizer)
    terminal(found)
    outputs = [(html_path, page), (json_path, lambda r: json.dumps(r.as_dict(), indent=1, ensure_ascii=False))]
    for path, render in outputs:
        if path is not None:
            try:
                write_atomically(path, render(found))
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _check_recipe(arguments: list[str]) -> None:
    sets = [arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == "--set"]
    sets += [a.removeprefix("--set=") for a in arguments if a.startswith("--set=")]
    source = arguments[0] if arguments and not arguments[0].startswith("-") else None
    _recipe(source, sets)


if __name__ == "__main__":
    main()

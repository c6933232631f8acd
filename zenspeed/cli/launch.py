"""launch, shim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zenspeed.cli.app import RunFolder, app, recipe_of, run_here
from zenspeed.errors import missing

if TYPE_CHECKING:
    from zenspeed.recipe import Recipe


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
        str | None,
        typer.Option("--rdzv", "--rdzv-endpoint", "--rdzv_endpoint", help="HOST:PORT where machines meet, in any order."),
    ] = None,
    rdzv_id: Annotated[str | None, typer.Option("--rdzv-id", "--rdzv_id", help="Name of the run.")] = None,
    rdzv_backend: Annotated[str | None, typer.Option("--rdzv-backend", "--rdzv_backend", help="c10d or static.")] = None,
    rdzv_timeout: Annotated[
        int, typer.Option("--rdzv-timeout", "--rdzv_timeout", min=1, help="Seconds that machines wait for each other.")
    ] = 600,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            "--max-restarts", "--max_restarts", min=0, help="Starts anew after a failure; training: 3 in a row, else 0."
        ),
    ] = None,
    min_processes: Annotated[
        int, typer.Option("--min-processes", min=1, help="Training: fewest processes to go on with when some are lost.")
    ] = 1,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CLUSTER", help="slurm, kubernetes, ray or ray://HOST:PORT: gives the job to a cluster."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--with", metavar="KEY=VALUE", help="A setting of the cluster: docs/clusters.md.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --on: print what would be submitted.")] = False,
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
        rdzv_timeout=rdzv_timeout,
        max_restarts=max_restarts,
        min_processes=min_processes,
        on=on,
        settings=tuple(settings or ()),
        dry_run=dry_run,
        end_with_input=end_with_input,
    )
    recipe: Recipe | None = None
    if context.args[:1] == ["train"] and not module:  # a wrong recipe is refused once, before any process starts
        recipe = _check_recipe(context.args[1:])
    if context.args[:1] == ["resume"] and not module:
        recipe = _recipe_of_run(context.args[1:])
    if context.args[:1] == ["evaluate"] and not module:
        _check_folder(context.args[1:], "model")
    raise typer.Exit(start(options, context.args, recipe))


@app.command()
def scale(run: RunFolder, num_processes: Annotated[int, typer.Option("-n", "--num-processes", min=1)]) -> None:
    """Let a run that `zenspeed launch` started go on with another number of processes."""
    from zenspeed.launch.train import scale as ask

    ask(run, num_processes)


@app.command()
def shim() -> None:
    """Print the folder that makes `import deepspeed` zenspeed when it is on PYTHONPATH."""
    from zenspeed.launch.command import shim_folder

    print(shim_folder())


def _sets(arguments: list[str]) -> list[str]:
    sets = [arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == "--set"]
    return sets + [a.removeprefix("--set=") for a in arguments if a.startswith("--set=")]


def _recipe_of_run(arguments: list[str]) -> Recipe | None:
    """Of a run that is to be gone on with; None where it has no checkpoint, which the verb itself will say."""
    from zenspeed.run import begun

    _check_folder(arguments, "run")
    if not arguments or arguments[0].startswith("-"):
        return None
    found = begun(run_here(Path(arguments[0])), _sets(arguments))
    return None if found is None else found.recipe


def _check_folder(arguments: list[str], kind: str) -> None:
    """Refuses a folder that is not here, before processes start and make it; an address is not looked up."""
    given = next(iter(arguments), "-")
    if not given.startswith("-") and ":/" not in given and not Path(given).exists():
        raise missing(given, kind)


def _check_recipe(arguments: list[str]) -> Recipe:
    sets = _sets(arguments)
    source = arguments[0] if arguments and not arguments[0].startswith("-") else None
    return recipe_of(source, sets)

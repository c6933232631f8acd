"""What `zenspeed launch` does with its options: here, on machines reached by ssh, or as one of several started by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zenspeed.config import nearest
from zenspeed.errors import InputError, missing
from zenspeed.launch.hosts import Slots, choose, limit, read_hostfile
from zenspeed.launch.local import end_with_input, launch
from zenspeed.launch.rendezvous import Rendezvous
from zenspeed.launch.ssh import Ssh, commands, environment_files, run, variables
from zenspeed.launch.watch import Watch, children
from zenspeed.recipe import Recipe
from zenspeed.storage import is_remote

VERBS = ("train", "resume", "evaluate")
CLUSTERS = ("slurm", "kubernetes", "ray")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line; None or empty is not given."""

    num_processes: int | None = None
    module: bool = False
    as_deepspeed: bool = False
    local_rank_argument: bool = True
    num_nodes: int | None = None
    hostfile: Path | None = None
    include: str = ""
    exclude: str = ""
    master_address: str | None = None
    master_port: int | None = None
    ssh: bool = True
    ssh_port: int | None = None
    nodes: str | None = None
    node_rank: int | None = None
    rdzv: dict[str, str] = field(default_factory=dict)
    """Backend, endpoint and id, where given."""
    rdzv_timeout: int = 600
    max_restarts: int | None = None
    """None: 3 for a training run on this machine, 0 for anything else."""
    min_processes: int = 1
    """Of a training run on this machine: fewest processes to go on with when some were lost."""
    on: str | None = None
    """slurm, kubernetes, ray or ray://HOST:PORT; None: machines that this command is run on, or ssh."""
    settings: tuple[str, ...] = ()
    """KEY=VALUE of `on`."""
    dry_run: bool = False
    end_with_input: bool = False


def start(options: Options, arguments: Sequence[str], recipe: Recipe | None = None) -> int:
    """Runs `arguments` (a verb, a script or a module, and what it gets) as `options` say; the exit code.

    `recipe`: of a run that is trained or gone on with, where it has been read.

    Raises:
        InputError: options that do not go together, or nothing that can be run.
    """
    if options.on is not None:
        return submit(options, arguments)
    if options.settings or options.dry_run:
        raise InputError("--with and --dry-run belong to --on slurm, kubernetes or ray")
    if recipe is not None and recipe.parallel.mode == "parameter_server":
        return _workers(options, _fetched(arguments, recipe), recipe)
    target = command_of(options, arguments)
    hosts = machines(options)
    if hosts is None and _one_run_here(options, arguments):
        from zenspeed.launch.train import supervise

        restarts = 3 if options.max_restarts is None else options.max_restarts
        verb, *rest = _fetched(arguments, recipe)
        return supervise(options.num_processes or 1, verb, rest, options.min_processes, restarts)
    if options.min_processes > 1:
        raise InputError("--min-processes is for train and resume on one machine")
    if hosts is None or (len(hosts) == 1 and next(iter(hosts)) in ("localhost", "127.0.0.1")) or not options.ssh:
        return _here(options, target, hosts, recipe)
    ssh = Ssh(options.ssh_port, options.master_address, options.master_port or 29500)
    passed_on = variables(os.environ, environment_files() if options.as_deepspeed else ())
    return run(hosts, commands(hosts, ssh, [*_same_options(options), *arguments], passed_on))


def _one_run_here(options: Options, arguments: Sequence[str]) -> bool:
    """Whether this is training on this machine alone, which is kept going by us and not by torch elastic."""
    return arguments[0] in ("train", "resume") and not (options.module or options.as_deepspeed or _elsewhere(options))


def _elsewhere(options: Options) -> bool:
    """Whether machines are to meet that each run this command."""
    several = options.nodes not in (None, "1") or (options.num_nodes or 1) > 1
    return bool(options.rdzv) or several or options.node_rank is not None


def _fetched(arguments: Sequence[str], recipe: Recipe | None) -> list[str]:
    """`resume s3://bucket/run` once it is here: the folder that it was fetched to instead of its address."""
    if arguments[0] == "resume" and recipe is not None and is_remote(arguments[1]):
        return ["resume", str(recipe.run.folder), *arguments[2:]]
    return list(arguments)


def _workers(options: Options, arguments: Sequence[str], recipe: Recipe) -> int:
    """The workers of a parameter server, on this machine."""
    from zenspeed.launch.workers import launch_workers

    if _elsewhere(options) or options.hostfile or options.include or options.exclude or options.master_address:
        raise InputError(
            "parallel.mode: parameter_server: workers meet at their servers, not at --rdzv, --nnodes or --hostfile; start "
            "servers and workers on each machine (docs/parameter-server.md), or give the job to Ray: --on ray"
        )
    if options.min_processes > 1:
        raise InputError("--min-processes: a parameter server goes on with any number of workers; leave it out")
    return launch_workers(options.num_processes or 1, arguments, recipe, options.max_restarts or 0)


def submit(options: Options, arguments: Sequence[str]) -> int:
    """Gives the job to a cluster."""
    from zenspeed.launch import kubernetes, ray, slurm
    from zenspeed.launch.job import job_of, settings_of

    on = str(options.on)
    kind = "ray" if on.startswith("ray://") else on
    if kind not in CLUSTERS:
        raise InputError(f"--on {on}: is no cluster zenspeed knows{nearest(on, CLUSTERS)} ({', '.join(CLUSTERS)})")
    where = (options.rdzv, options.hostfile, options.include, options.exclude, options.node_rank, options.master_address)
    if any(where):
        raise InputError(f"--on {on}: {kind} chooses machines and where they meet; leave out the options that name them")
    nodes = options.nodes or str(options.num_nodes or 1)
    job = job_of(arguments, nodes, options.num_processes or 1, options.max_restarts or 0, on)
    if kind != "ray" and job.recipe.parallel.mode == "parameter_server":
        raise InputError(
            f"--on {on}: parallel.mode: parameter_server is placed by --on ray alone; elsewhere start servers and workers as "
            "jobs of their own: docs/parameter-server.md"
        )
    if kind == "slurm":
        return slurm.submit(job, settings_of(slurm.SlurmSettings, options.settings), dry_run=options.dry_run)
    if kind == "kubernetes":
        return kubernetes.submit(job, settings_of(kubernetes.KubernetesSettings, options.settings), dry_run=options.dry_run)
    address = on if on != "ray" else None
    return ray.submit(job, settings_of(ray.RaySettings, options.settings), address, dry_run=options.dry_run)


def command_of(options: Options, arguments: Sequence[str]) -> list[str]:
    """The command of one process."""
    if not arguments:
        raise InputError(
            "launch runs train, resume, evaluate, a script (.py) or -m module, got nothing: zenspeed launch -n 2 train x.yaml"
        )
    target, rest = arguments[0], list(arguments[1:])
    number = ["--local_rank=${local_rank}"] if options.as_deepspeed and options.local_rank_argument else []
    if options.module:
        return [sys.executable, "-u", "-m", target, *number, *rest]
    if target in VERBS:
        # Where everything may be started anew, since machines come and go or fail, the same command goes on with the run.
        nodes = options.nodes or "1"
        again = target == "train" and (":" in nodes or (nodes != "1" and bool(options.max_restarts))) and "--resume" not in rest
        rest += ["--resume"] if again else []
        return [sys.executable, "-m", "zenspeed", target, *rest]
    if target.endswith(".py") or Path(target).is_file():
        if not Path(target).is_file():
            raise missing(target)
        return [sys.executable, "-u", target, *number, *rest]
    raise InputError(
        f"launch runs train, resume, evaluate, a script (.py) or -m module, got {target}: zenspeed launch -n 2 train x.yaml"
    )


def machines(options: Options) -> Slots | None:
    """Machines and slots where a hostfile or a filter speaks of them; None: this machine, any number of processes."""
    if (options.include or options.exclude) and (options.num_nodes is not None or options.num_processes is not None):
        raise InputError("--include and --exclude choose the slots themselves; leave out --num_nodes, --num_gpus and -n")
    if options.hostfile is not None:
        if options.nodes is not None:
            raise InputError("--hostfile and --nnodes are two ways to name machines; keep one")
        hosts = choose(read_hostfile(options.hostfile), options.include, options.exclude)
        return limit(hosts, options.num_nodes, options.num_processes)
    if options.include or options.exclude:
        return choose({"localhost": list(range(max(1, _accelerators())))}, options.include, options.exclude)
    if (options.num_nodes or 1) > 1 and options.ssh:
        raise InputError(f"--num_nodes {options.num_nodes} needs --hostfile FILE, or --no_ssh and --node_rank on each machine")
    return None


def _here(options: Options, target: list[str], hosts: Slots | None, recipe: Recipe | None) -> int:
    """This machine's part."""
    if options.as_deepspeed:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(shim_folder()), *filter(None, [os.environ.get("PYTHONPATH")])])
    rendezvous = _rendezvous(options, hosts)
    count = options.num_processes
    if hosts is not None:
        slots = list(hosts.values())[rendezvous.node_rank if len(hosts) > 1 else 0]
        count = len(slots)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, slots))
    if options.end_with_input:
        end_with_input()
    watch = None
    if recipe is not None and recipe.run.folder is not None:
        watch = Watch(recipe.run.folder, recipe.guard, children)
    return launch(count or (max(1, _accelerators()) if options.as_deepspeed else 1), target, rendezvous, watch)


def _rendezvous(options: Options, hosts: Slots | None) -> Rendezvous:
    nodes = options.nodes or str(len(hosts) if hosts is not None and len(hosts) > 1 else options.num_nodes or 1)
    address, port = options.master_address, options.master_port or 29500
    static = options.rdzv.get("backend") == "static" or (options.node_rank is not None and "endpoint" not in options.rdzv)
    if nodes == "1" and not options.rdzv:
        static = False
    if static and not (address or options.rdzv.get("endpoint")):
        raise InputError("--node_rank needs --master_addr, the machine with number 0, or use --rdzv-endpoint instead")
    if nodes != "1" and options.node_rank is None and not options.rdzv.get("endpoint"):
        raise InputError(
            f"{nodes} machines: give --rdzv-endpoint HOST:PORT, or --master_addr and --node_rank, or a --hostfile with ssh"
        )
    return Rendezvous(
        nodes=nodes,
        backend="static" if static else options.rdzv.get("backend", "c10d"),
        endpoint=options.rdzv.get("endpoint") or (f"{address}:{port}" if static else ""),
        id=options.rdzv.get("id", "zenspeed"),
        node_rank=options.node_rank or 0,
        max_restarts=options.max_restarts or 0,
        timeout_seconds=options.rdzv_timeout,
    )


def _same_options(options: Options) -> list[str]:
    """What every machine must be told again."""
    given = {
        "--as-deepspeed": options.as_deepspeed,
        "--no-local-rank": not options.local_rank_argument,
        "--module": options.module,
    }
    return [name for name, on in given.items() if on]


def shim_folder() -> Path:
    """The folder that makes `import deepspeed` zenspeed when it stands on PYTHONPATH."""
    import zenspeed.compat

    return Path(zenspeed.compat.__file__).parent / "shim"


def _accelerators() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0

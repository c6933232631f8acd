"""`zenspeed launch --on slurm`: a batch script that can be read, submitted by sbatch.

One task of Slurm is one machine's launcher; it starts the processes there, and the launchers meet at the first machine.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import Field

from zenspeed.config import Config, write_atomically
from zenspeed.errors import InputError
from zenspeed.launch.job import Job


class SlurmSettings(Config):
    """`--with` of `--on slurm`; what is not given is left to the cluster."""

    partition: str | None = None
    """Partition, as `sinfo` lists them."""
    account: str | None = None
    """Account that is charged."""
    time: str | None = None
    """Limit, as Slurm has it: minutes, H:MM:SS or D-H:MM:SS. A minute before it the run writes a checkpoint and ends."""
    cpus: int | None = Field(None, ge=1)
    """Cores on each machine."""
    memory: str | None = None
    """Memory on each machine, such as 64G."""
    gpus: int | None = Field(None, ge=0)
    """GPUs on each machine."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines before the run, such as `module load cuda`; may be given several times."""
    option: list[str] = Field(default_factory=list)
    """Further options of sbatch, such as --qos=long; may be given several times."""
    python: str = sys.executable
    """Interpreter with zenspeed, on all machines."""
    port: int = Field(29500, ge=1024, le=64511)
    """Port where the machines meet; the job's number is added, up to 1,023, so that two jobs on a machine do not collide."""


def script(job: Job, settings: SlurmSettings) -> str:
    """The batch script. All paths in it are absolute, on a folder that all machines share."""
    least, most = job.nodes
    folder = job.folder.expanduser().absolute()
    directives = {
        "job-name": job.name,
        "nodes": str(most) if least == most else f"{least}-{most}",
        "ntasks-per-node": "1",
        "cpus-per-task": settings.cpus,
        "mem": settings.memory,
        "gpus-per-node": settings.gpus,
        "partition": settings.partition,
        "account": settings.account,
        "time": settings.time,
        "signal": "TERM@60",
        "output": f"{folder}/slurm-%j.out",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in directives.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in settings.option)]
    recipe = shlex.quote(str(job.recipe_file.absolute()))
    launch = [settings.python, "-m", "zenspeed", "launch", "-n", str(job.processes), "--max-restarts", str(job.max_restarts)]
    start = "\n".join(
        [
            f"cd {shlex.quote(str(Path.cwd()))}",
            *settings.setup,
            f"test -r {recipe} || {{",
            '  echo "error: $(hostname): cannot read "' + recipe + '"; put it on a folder that all machines share" >&2',
            "  exit 2",
            "}",
            f"exec {shlex.join(launch)} \\",
            '  --nnodes "$NODES" --rdzv-endpoint "$MEET" --rdzv-id "$SLURM_JOB_ID" \\',
            f"  train {shlex.join([str(job.recipe_file.absolute()), *job.arguments])}",
        ]
    )
    nodes = '"$SLURM_JOB_NUM_NODES"' if least == most else f'"{least}:$SLURM_JOB_NUM_NODES"'
    return f"""#!/bin/bash
{chr(10).join(lines)}

# The launchers of all machines meet at the first one. A job that is started again goes on from its last checkpoint.
set -euo pipefail
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${{hosts%%$'\\n'*}}
export NODES={nodes}
export MEET="$first:$(({settings.port} + SLURM_JOB_ID % 1024))"
srun --kill-on-bad-exit=1 --label bash -euo pipefail -c {shlex.quote(start)}
"""


def submit(job: Job, settings: SlurmSettings, *, dry_run: bool) -> int:
    """Writes the script into the run's folder and hands it to sbatch; with `dry_run`, prints it instead.

    Raises:
        InputError: there is no sbatch here, or it refuses the job.
    """
    text = script(job, settings)
    if dry_run:
        print(text, end="")
        return 0
    if shutil.which("sbatch") is None:
        raise InputError("--on slurm: there is no sbatch here; run this where jobs are submitted, or look at it with --dry-run")
    file = job.folder / "slurm.sh"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}; give another --set run.folder=…") from None
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"sbatch refused {file}: {done.stderr.strip()}")
    number = done.stdout.strip().partition(";")[0]
    output = job.folder.expanduser().absolute() / f"slurm-{number}.out"
    print(f"job     {number}\nscript  {file}\noutput  {output}\nwatch   squeue -j {number}\nend     scancel {number}")
    return 0

"""`zenspeed info`: what this machine has, and what will and will not work on it, with the reason."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from zenspeed.machine import measure_matmul, processor_name, usable_cores

BYTES_A_PARAMETER = 16  # fp32 weights, gradients and Adam's two moments


class Verdict(NamedTuple):
    what: str
    works: bool
    why: str


def report() -> None:
    """Prints the machine as measured, and a table of verdicts."""
    torch.set_num_threads(usable_cores())
    console = Console(highlight=False, soft_wrap=True)
    rates = dtype_rates()
    memory = psutil.virtual_memory()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("zenspeed", importlib.metadata.version("zenspeed")),
        ("python, torch", f"{platform.python_version()}, {torch.__version__}"),
        ("processor", f"{processor_name()}, {usable_cores()} cores usable"),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        ("disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free"),
        ("accelerators", ", ".join(accelerators()) or "none"),
        ("collectives", ", ".join(backends())),
        *(
            (f"{name} products", f"{rate / 1e9:,.{0 if rate >= 1e10 else 1}f} GFLOP/s, as measured now")
            for name, rate in rates.items()
        ),
    ):
        table.add_row(f"[bold]{name}", value)
    console.print(table)
    console.print()
    for verdict in verdicts(rates):
        mark = "[green]yes[/]" if verdict.works else "[red]no [/]"
        console.print(f" {mark}  {verdict.what}: {verdict.why}")


def dtype_rates() -> dict[str, float]:
    """FLOP/s of a matrix product in each type, all usable cores, on the device that training would use."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return {name: measure_matmul(dtype, device, 1024, 3) for name, dtype in types.items()}


def accelerators() -> list[str]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name if torch.cuda.is_available() else str
    return [f"{name(i)} ({kind})" for i in range(torch.accelerator.device_count())]


def backends() -> list[str]:
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return [name for name, available in there.items() if available]


def verdicts(rates: dict[str, float]) -> list[Verdict]:
    """What works here and why."""
    gain = rates["bf16"] / rates["fp32"]
    params = psutil.virtual_memory().available / BYTES_A_PARAMETER
    has_compiler = shutil.which("g++") is not None
    gpu = torch.accelerator.is_available()
    return [
        Verdict("bf16 training", gain >= 1.2, f"its products run at {gain:.1f} × the rate of fp32; train.precision: auto "
                + ("takes it" if gain >= 1.2 else "takes fp32")),
        Verdict("fp32 training", True, f"up to about {params / 1e6:,.0f} M parameters fit in free memory, activations aside"),
        Verdict("several processes", dist.is_gloo_available(), f"zenspeed launch -n {usable_cores()} train …; "
                "gloo on CPUs" + (", nccl on GPUs" if dist.is_nccl_available() and gpu else "")),
        Verdict("train.compile", has_compiler, "g++ was found" if has_compiler else
                "torch.compile needs g++ on a CPU, and there is none on PATH; everything else works without a compiler"),
        Verdict("GPU training", gpu, f"{torch.accelerator.device_count()} found" if gpu else
                "no accelerator that this build of torch can use"),
        Verdict("TensorBoard", _there("tensorboard"), "runs write events; look with: tensorboard --logdir runs"),
    ]  # fmt: skip


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

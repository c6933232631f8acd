"""What a plan is made for: accelerators with their published figures, and clusters of them. No torch here.

Peak rates are dense (no sparsity), bandwidths are bytes a second in one direction for each accelerator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from zenspeed.config import Config, InputError, load, nearest

Precision = Literal["fp32", "fp16", "bf16", "fp8"]


class Accelerator(NamedTuple):
    """One device. `peak`: FLOP/s of matrix products by precision, fp32 being TF32 where there is such a thing."""

    peak: dict[str, float]
    memory_bytes: float
    bandwidth: float
    """Of its memory."""
    link: float
    """To the others of its machine."""
    network: float
    """To other machines, as usually built."""
    per_machine: int
    watts: float
    achievable: float
    """Share of the peak that the best large bf16 (or fp16) product reaches."""
    source: str
    hot: float = 0.80
    """Share of that rate over products of all shapes, of numbers that are not all alike, at the clock of a hot device."""
    attention: float = 0.52
    """Share of that rate in FlashAttention-2, forward; backward is 0.8 of it and does 2.5 times the work."""


def _device(
    tflops: Mapping[str, float], gb: float, tb_s: float, link: float, network: float, per_machine: int, watts: float,
    best: float, source: str, **shares: float,
) -> Accelerator:  # fmt: skip
    peak = {k: v * 1e12 for k, v in tflops.items()}
    return Accelerator(peak, gb * 1e9, tb_s * 1e12, link * 1e9, network * 1e9, per_machine, watts, best, source, **shares)


# Of A100 both shares are published. Products of random numbers run at 258 of the 271 TFLOP/s that the best shape reaches (He,
# "Strangely, matrix multiplications on GPUs run faster when given predictable data", thonking.ai); FlashAttention-2 at 50 to
# 73 % of the peak (Dao 2307.08691), of which 60 % is the geometric middle. Those of other devices are what H100 runs showed
# (benchmarks/plan.py says on which rows they were chosen): H100's clock falls further, and the kernel leaves its units idle.
A100_PEAK = {"bf16": 312, "fp16": 312, "fp32": 156}
A100_SHARES = {"hot": 258 / 271, "attention": 0.60 / 0.87}


# `achievable` is the best product found by Bekman's search over shapes where he lists the device (ml-engineering, "maximum
# achievable matmul FLOPS"): A100 271, H100 792, MI300X 758, B200 1,745 TFLOP/s in bf16; else 0.8.
ACCELERATORS: dict[str, Accelerator] = {
    "V100": _device({"fp16": 125, "fp32": 15.7}, 32, 0.9, 150, 12.5, 8, 300, 0.8, "NVIDIA V100 datasheet, SXM2 32 GB"),
    "A100": _device(A100_PEAK, 80, 2.039, 300, 25, 8, 400, 0.87, "NVIDIA A100 datasheet, SXM", **A100_SHARES),
    "A100-40GB": _device(A100_PEAK, 40, 1.555, 300, 25, 8, 400, 0.87, "NVIDIA A100 datasheet", **A100_SHARES),
    "H100": _device(
        {"bf16": 989, "fp16": 989, "fp8": 1979, "fp32": 495}, 80, 3.35, 450, 50, 8, 700, 0.80, "NVIDIA H100 datasheet, SXM"
    ),
    "H200": _device(
        {"bf16": 989, "fp16": 989, "fp8": 1979, "fp32": 495}, 141, 4.8, 450, 50, 8, 700, 0.80, "NVIDIA H200 datasheet"
    ),
    "B200": _device(
        {"bf16": 2250, "fp16": 2250, "fp8": 4500, "fp32": 1125}, 180, 7.7, 900, 50, 8, 1000, 0.78, "NVIDIA DGX B200 datasheet"
    ),
    "MI300X": _device(
        {"bf16": 1307, "fp16": 1307, "fp8": 2615, "fp32": 654}, 192, 5.3, 448, 50, 8, 750, 0.58, "AMD MI300X data sheet"
    ),
    "910B": _device({"bf16": 313, "fp16": 313, "fp32": 78}, 64, 1.6, 196, 25, 8, 400, 0.8, "Atlas 800T A2, as reported"),
    "TPUv5p": _device({"bf16": 459, "fp32": 115}, 95, 2.765, 300, 300, 4, 500, 0.8, "Google Cloud TPU v5p documentation"),
    "L40S": _device(
        {"bf16": 362, "fp16": 362, "fp8": 733, "fp32": 183}, 48, 0.864, 32, 12.5, 8, 350, 0.8, "NVIDIA L40S datasheet"
    ),
    "RTX4090": _device(
        {"bf16": 165, "fp16": 165, "fp8": 330, "fp32": 83}, 24, 1.008, 25, 3, 4, 450, 0.9, "NVIDIA Ada whitepaper"
    ),
}  # fmt: skip


def slowdown(power: float) -> float:
    """Rate of products under a power limit of `power` times the usual one. Power grows with clock × voltage², and near the
    lowest voltage with the clock alone, so the exponent lies between a third and one."""
    return float(min(1.0, power) ** 0.7)


class ClusterConfig(Config):
    """A cluster file; keys that are null are the accelerator's published figures."""

    called: ClassVar[str] = "a cluster file"
    outline: ClassVar[str] = "keys (accelerator: H100, count: 8 …)"

    accelerator: str
    """A name of the table: V100, A100, H100, B200, MI300X, 910B …"""
    count: int = Field(ge=1)
    """Accelerators in all."""
    per_machine: int | None = Field(None, ge=1)
    """Accelerators of one machine."""
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Memory of one accelerator, 10⁹ bytes."""
    bandwidth_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Its memory's bandwidth, GB/s."""
    link_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """To the others of its machine, GB/s in one direction."""
    network_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """To other machines, GB/s for one accelerator."""
    watts: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Power limit of one accelerator; below the usual one products slow down."""
    dollars_per_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Price of one accelerator; without it no money is reckoned."""
    overhead_watts: float = Field(0.3, ge=0, allow_inf_nan=False)
    """Power of the rest (host, network, cooling), as a share of the accelerators'."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.per_machine is not None and self.count > self.per_machine and self.count % self.per_machine:
            whole = -(-self.count // self.per_machine) * self.per_machine
            raise ValueError(f"count: {self.count} are no whole machines of per_machine={self.per_machine}; take {whole}")
        return self


class Cluster(NamedTuple):
    """Where a plan runs; bandwidths as in `Accelerator`."""

    name: str
    device: Accelerator
    devices: int
    dollars_per_hour: float | None = None
    overhead_watts: float = 0.3
    measured: bool = False
    """The figures are this machine's own."""


def cluster_of(text: str) -> Cluster:
    """`8xH100`, or a YAML file of `ClusterConfig`.

    Raises:
        InputError: neither, or an accelerator that is not in the table.
    """
    if text.endswith((".yaml", ".yml")):
        return _from_config(load(ClusterConfig, Path(text), []))
    match = re.fullmatch(r"(\d+)\s*[x×*]\s*(\S+)", text)
    if not match or int(match[1]) < 1:
        raise InputError(f"--on: {text!r} is no cluster; give COUNTxNAME such as 8xH100, a cluster's .yaml file, or this")
    return Cluster(text, _accelerator(match[2]), int(match[1]))


def _accelerator(name: str) -> Accelerator:
    known = {key.lower(): key for key in ACCELERATORS}
    if name.lower() not in known:
        hint = nearest(name, list(ACCELERATORS))
        raise InputError(f"--on: no accelerator {name!r} in the table{hint}; there are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[known[name.lower()]]


def _from_config(config: ClusterConfig) -> Cluster:
    device = _accelerator(config.accelerator)
    given: dict[str, Any] = {
        "memory_bytes": config.memory_gb and config.memory_gb * 1e9,
        "bandwidth": config.bandwidth_gb and config.bandwidth_gb * 1e9,
        "link": config.link_gb and config.link_gb * 1e9,
        "network": config.network_gb and config.network_gb * 1e9,
        "per_machine": config.per_machine,
    }
    if config.watts:
        given |= {"achievable": device.achievable * slowdown(config.watts / device.watts), "watts": config.watts}
    device = device._replace(**{k: v for k, v in given.items() if v})
    name = f"{config.count}x{config.accelerator}"
    return Cluster(name, device, config.count, config.dollars_per_hour, config.overhead_watts)

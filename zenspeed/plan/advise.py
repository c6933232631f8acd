"""From a recipe and a cluster to layouts, best first, with what they need; and what would make a model fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from zenspeed.config import InputError, nearest
from zenspeed.plan.estimate import Estimate, Memory, Time, estimate, zero_bytes
from zenspeed.plan.hardware import Accelerator, Cluster, Precision
from zenspeed.plan.layout import Kernel, Layout, Recompute
from zenspeed.plan.work import Shape
from zenspeed.recipe import Recipe

DEFAULT_VOCABULARY = 4096
TOKENS_PER_WEIGHT = 20.0
"""Tokens to train on for each weight where a recipe does not say how long it runs (Hoffmann et al. 2203.15556)."""


class Plan(NamedTuple):
    """Estimates, best first, for one recipe."""

    shape: Shape
    cluster: Cluster
    tokens: float
    """To train on."""
    tokens_reason: str
    found: list[Estimate]
    advice: list[str]
    """What would make it fit, where nothing does."""

    def hours(self, one: Estimate) -> float:
        return self.tokens / one.tokens_per_second / 3600

    def dollars(self, one: Estimate) -> float | None:
        price = self.cluster.dollars_per_hour
        return None if price is None else self.hours(one) * one.layout.ranks * price

    def kilowatt_hours(self, one: Estimate) -> float:
        device = self.cluster.device
        return self.hours(one) * one.layout.ranks * device.watts * (1 + self.cluster.overhead_watts) / 1000


def vocabulary(recipe: Recipe) -> int:
    """Rows of the embedding that the recipe leads to, before any tokenizer is trained."""
    return recipe.model.vocab_size or recipe.tokenizer.vocab_size or DEFAULT_VOCABULARY


def states_of(recipe: Recipe) -> int:
    """fp32 bytes of optimizer state for a weight; Muon holds one number for what it trains, nearly all of a deep model."""
    return {"adamw": 8, "muon": 4, "sgd": 4}[recipe.optim.name]


def layouts(recipe: Recipe, cluster: Cluster) -> Iterator[Layout]:
    """Those that the engine can run: ZeRO 0-3 over all ranks or the ranks of a machine, micro-batches that divide the batch."""
    ranks, share, machine = cluster.devices, _share(recipe, cluster.devices), cluster.device.per_machine
    if recipe.train.precision == "fp8":
        _check_precision("train.precision: fp8", "fp8", cluster)
    shards = [None, machine] if ranks > machine and ranks % machine == 0 else [None]
    sizes = [recipe.train.micro_batch_size] if recipe.train.micro_batch_size else [d for d in _powers(share) if share % d == 0]
    for zero in range(4) if ranks > 1 else (0,):
        for shard in shards if zero else [None]:
            for micro in sizes:
                yield Layout(
                    data=ranks,
                    zero=zero,
                    shard_ranks=shard,
                    micro_batch=micro,
                    accumulation=share // micro,
                    optimizer_bytes=states_of(recipe),
                    gather_bytes=4,
                    compiled=recipe.train.compile is True,
                    recompute="full" if recipe.train.recompute else "none",
                    precision="bf16" if recipe.train.precision == "auto" else recipe.train.precision,
                )


def _share(recipe: Recipe, ranks: int) -> int:
    """Sequences of a rank in an update; InputError where ranks or micro-batches do not divide the batch."""
    batch, micro, shard = recipe.train.batch_size, recipe.train.micro_batch_size, recipe.parallel.shard_ranks
    if recipe.parallel.mode != "data_parallel":
        raise InputError(f"plan: reckons data parallelism; give --set parallel.mode=data_parallel for {recipe.parallel.mode}")
    if shard and ranks % shard:
        raise InputError(f"parallel.shard_ranks: {shard} does not divide {ranks} ranks; take a divisor")
    if batch % ranks:
        near = max(1, round(batch / ranks)) * ranks
        raise InputError(f"train.batch_size: {batch} sequences cannot be shared by {ranks} ranks; take {near}")
    if micro and (batch // ranks) % micro:
        raise InputError(
            f"train.micro_batch_size: {micro} does not divide the {batch // ranks} sequences that each of {ranks} ranks has of "
            f"train.batch_size={batch}; take a divisor"
        )
    return batch // ranks


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def layout_from(pairs: list[str], recipe: Recipe, cluster: Cluster) -> Layout:
    """One layout as given, `data=4`, `recompute=full` …, with axes that the engine does not have among them: a what-if."""
    values: dict[str, Any] = {"optimizer_bytes": states_of(recipe), "gather_bytes": 4}
    for number, pair in enumerate(pairs):
        name, _, text = pair.partition("=")
        if name not in Layout._fields:
            raise InputError(
                f"--layout {pair}: no key {name!r}{nearest(name, Layout._fields)}; keys: {', '.join(Layout._fields)}"
            )
        if name in {one.partition("=")[0] for one in pairs[:number]}:
            raise InputError(f"--layout {pair}: {name} is given twice; keep one")
        values[name] = _value_of(pair, name, text)
    for name, known in {
        "recompute": get_args(Recompute),
        "attention": get_args(Kernel),
        "precision": get_args(Precision),
    }.items():
        if values.get(name, known[0]) not in known:
            raise InputError(f"--layout {name}={values[name]}: write {', '.join(known[:-1])} or {known[-1]}")
    layout = Layout(**values)
    if "precision" in values:
        _check_precision(f"--layout precision={layout.precision}", layout.precision, cluster)
    if layout.ranks != cluster.devices:
        axes = f"{layout.data} × {layout.tensor} × {layout.pipeline} × {layout.context}"
        raise InputError(
            f"--layout: data × tensor × pipeline × context = {axes} = {layout.ranks}, but --on has {cluster.devices}"
        )
    return layout


def _check_precision(place: str, precision: str, cluster: Cluster) -> None:
    if precision not in cluster.device.peak:
        raise InputError(f"{place}: {cluster.name} has no such products; it has {', '.join(cluster.device.peak)}")


def _value_of(pair: str, name: str, text: str) -> str | bool | int:
    default = Layout._field_defaults[name]
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise InputError(f"--layout {pair}: {text!r} is neither; write {name}=true or {name}=false")
        return text == "true"
    least, most = (0, 3) if name == "zero" else (0, None) if name == "optimizer_bytes" else (1, None)
    if not re.fullmatch(r"-?\d+", text):
        raise InputError(f"--layout {pair}: {text!r} is no whole number; write {name}=2")
    if int(text) < least or (most is not None and int(text) > most):
        raise InputError(f"--layout {pair}: is {'below' if int(text) < least else 'above'} what there is; write {name}=1")
    return int(text)


def tokens_of(recipe: Recipe, shape: Shape, tokens: float | None) -> tuple[float, str]:
    """How many tokens the run will read, and why."""
    if tokens is not None:
        return tokens, "as asked"
    if recipe.train.steps is not None:
        return float(recipe.train.steps * recipe.train.batch_size * shape.context), f"train.steps={recipe.train.steps}"
    return TOKENS_PER_WEIGHT * shape.weights, f"{TOKENS_PER_WEIGHT:.0f} a weight; set train.steps, or --tokens"


def plan(recipe: Recipe, cluster: Cluster, tokens: float | None = None, layout: list[str] | None = None) -> Plan:
    """Layouts of a recipe on a cluster, the fastest that fits first.

    Raises:
        InputError: the batch cannot be shared by the ranks, or a what-if layout does not fit the cluster.
    """
    shape = Shape(recipe.model, vocabulary(recipe))
    asked = [layout_from(layout, recipe, cluster)] if layout else layouts(recipe, cluster)
    found = [estimate(shape, one, cluster, fused=True, chunked=not one.fused_loss) for one in asked]
    found.sort(key=lambda e: (not e.fits, -e.tokens_per_second if e.fits else e.memory.total))
    advice = [] if any(e.fits for e in found) else _advice(shape, found[0], cluster, recipe)
    return Plan(shape, cluster, *tokens_of(recipe, shape, tokens), found, advice)


def _advice(shape: Shape, best: Estimate, cluster: Cluster, recipe: Recipe) -> list[str]:
    """What would make the smallest layout fit: more devices, a shorter context, or activations computed again."""
    room = cluster.device.memory_bytes
    memory = best.memory
    lines = [
        f"needs {memory.total / 1e9:,.1f} GB on a device of {room / 1e9:,.0f} GB: model states {memory.states / 1e9:,.1f}, "
        f"activations of {best.layout.micro_batch} sequence(s) {memory.activations / 1e9:,.1f}"
    ]
    stage3 = best.layout._replace(zero=3, shard_ranks=None)

    def smallest(layout: Layout, words: str) -> None:
        for doublings in range(16):
            count = cluster.devices * 2**doublings
            found = estimate(shape, layout._replace(data=count), cluster, fused=True, chunked=True)
            if found.fits:
                lines.append(f"{words} on {count} of them at ZeRO stage 3 ({found.memory.total / 1e9:,.1f} GB a rank)")
                return

    smallest(stage3, "fits")
    if len(lines) == 1:
        share = (0.8 * room - memory.buffers) / memory.activations
        if 0 < share < 1:
            shorter = max(64, int(share * recipe.model.context) // 64 * 64)
            lines.append(f"more devices alone do not help: model.context={shorter} or less, or a smaller model")
        smallest(stage3._replace(recompute="full"), "with train.recompute=true it fits")
    return lines


def plan_here(recipe: Recipe, ranks: int, tokens: float | None = None) -> Plan:
    """The plan for this machine, from some seconds of training on it. `ranks`: processes that share its cores."""
    import psutil
    import torch

    from zenspeed.machine import measure_matmul, usable_cores
    from zenspeed.parallel.mesh import pick_device
    from zenspeed.plan.measure import measure

    shape, share = Shape(recipe.model, vocabulary(recipe)), _share(recipe, ranks)
    # As training sets them: what the user says, else this process's share of the cores.
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, usable_cores() // ranks)
    torch.set_num_threads(threads * ranks)
    took = measure(recipe, vocabulary(recipe), ranks, threads)
    micro, lanes, precision = took.resolved
    peak = measure_matmul(torch.float32 if precision == "fp32" else torch.bfloat16, pick_device(0))
    layout = Layout(
        data=ranks, zero=recipe.parallel.zero, micro_batch=micro, accumulation=share // micro,
        optimizer_bytes=states_of(recipe), gather_bytes=4, recompute="full" if recipe.train.recompute else "none",
    )  # fmt: skip
    states = zero_bytes(shape.weights, layout)
    whole = shape.layers * took.block_bytes + took.rest_bytes
    # Weights and states as they are while a checkpoint is written beside training.
    copy = (4 + states_of(recipe)) * shape.weights / (ranks if layout.zero else 1)
    memory = Memory(*states, activations=max(0.0, whole - sum(states)), logits=0.0, buffers=copy, fragmentation=0.0)
    time = Time(
        products=shape.layers * took.block_seconds, attention=0.0, elementwise=took.rest_seconds, recompute=0.0,
        tensor=0.0, context=0.0, data=0.0, bubble=0.0,
        optimizer=shape.layers * took.block_update_seconds + took.rest_update_seconds,
    )  # fmt: skip
    rate = layout.sequences * shape.context / time.total
    total = psutil.virtual_memory().total
    in_lanes = f" in {lanes} lanes" if lanes > 1 else ""
    name = f"this machine, {ranks} × {threads} threads{in_lanes}, {precision}"
    accelerator = Accelerator({"bf16": peak, "fp32": peak}, total / ranks, 0.0, 0.0, 0.0, ranks, 0.0, 1.0, "measured")
    mfu = rate * shape.flops_per_token() / peak
    one = Estimate(layout, memory, time, rate, mfu, memory.total * ranks <= total)
    fits = [] if one.fits else [f"{ranks} processes of {memory.total / 1e9:.1f} GB on {total / 1e9:.1f} GB of memory"]
    return Plan(shape, Cluster(name, accelerator, ranks, measured=True), *tokens_of(recipe, shape, tokens), [one], fits)

"""A plan in the terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from zenspeed.plan.advise import Plan
from zenspeed.plan.dry_run import DryRun
from zenspeed.plan.estimate import Estimate, communication_volume

SHOWN = 6


def show(plan: Plan) -> None:
    """The best layouts, and the parts of the best."""
    console = Console(highlight=False, soft_wrap=True)
    shape, best = plan.shape, plan.found[0]
    console.print(
        f"model: {shape.weights:,} weights, {shape.layers} layers × {shape.width}, context {shape.context}, "
        f"vocabulary {shape.vocab:,}; {plan.tokens:,.0f} tokens ({plan.tokens_reason})"
    )
    console.print(f"on:    {plan.cluster.name} · {plan.cluster.device.source}")
    shown = plan.found[:SHOWN]
    width = max(len(str(one.layout)) for one in shown)
    head = ("GB a rank", "tokens/s", "MFU", "hours", "kWh", "dollars")
    console.print(f"{'layout':<{width}}  " + "  ".join(f"{name:>10}" for name in head))
    for one in shown:
        dollars, power = plan.dollars(one), plan.kilowatt_hours(one)
        cells = [f"{one.memory.total / 1e9:,.2f}", f"{one.tokens_per_second:,.0f}", f"{one.mfu:.1%}", f"{plan.hours(one):,.2f}"]
        cells += [f"{power:,.1f}" if power else "–", f"{dollars:,.0f}" if dollars is not None else "–"]
        note = "" if one.fits else "  does not fit"
        console.print(f"{one.layout!s:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells) + note)
    if len(plan.found) > SHOWN:
        console.print(f"and {len(plan.found) - SHOWN} more; --json has all")
    console.print("\nthe first of them, one rank")
    measured = {"activations": "activations and the process", "buffers": "a copy for checkpoints"}
    others = measured if plan.cluster.measured else {}
    parts = [f"{others.get(name, name)} {value / 1e9:,.2f}" for name, value in best.memory._asdict().items() if value]
    console.print("  GB:       " + ", ".join(parts))
    named = (
        {"elementwise": "embedding and head", "products": "blocks", "optimizer": "sums and optimizer"}
        if plan.cluster.measured
        else {}
    )
    seconds = [f"{named.get(name, name)} {value:.3g}" for name, value in best.time._asdict().items() if value]
    console.print("  seconds:  " + ", ".join(seconds) + f"; one update {best.time.total:.3g}")
    for line in plan.advice:
        console.print(f"does not fit: {line}")


def as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "schema": "zenspeed.plan",
        "version": 1,
        "weights": plan.shape.weights,
        "cluster": plan.cluster._asdict() | {"device": plan.cluster.device._asdict()},
        "tokens": plan.tokens,
        "tokens_reason": plan.tokens_reason,
        "layouts": [_one(plan, e) for e in plan.found],
        "advice": plan.advice,
    }


def _one(plan: Plan, e: Estimate) -> dict[str, Any]:
    return {
        "layout": e.layout._asdict(),
        "fits": e.fits,
        "memory_bytes": e.memory._asdict() | {"total": e.memory.total},
        "seconds": e.time._asdict() | {"total": e.time.total},
        "tokens_per_second": e.tokens_per_second,
        "mfu": e.mfu,
        "hours": plan.hours(e),
        "kilowatt_hours": plan.kilowatt_hours(e),
        "dollars": plan.dollars(e),
        "elements_sent": communication_volume(plan.shape.weights, e.layout),
    }


def show_dry_run(found: DryRun) -> None:
    """What one rank held and sent."""
    console = Console(highlight=False)
    gb = {
        "weights": found.weight_bytes,
        "gradients": found.gradient_bytes,
        "masters and optimizer": found.optimizer_bytes,
        "kept for backward": found.activation_bytes,
        "attention's scores, where it is no one kernel": found.score_bytes,
    }
    console.print(f"{found.weights:,} weights on {found.ranks:,} ranks, built and run once in {found.seconds:.1f} s; rank 0:")
    for name, value in gb.items():
        console.print(f"  {value / 1e9:12,.3f} GB  {name}")
    for call in found.calls:
        console.print(f"  {call.calls:12,} ×    {call.op} of {call.num_bytes:,} bytes")

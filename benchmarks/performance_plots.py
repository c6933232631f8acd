"""The plots of docs/performance.md, as SVG beside it; performance_page.py calls them with records of benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
OURS, PEERS, THEORY = "#c1121f", "#9db4c0", "#444444"


def speed(records: list[Record], names: dict[str, str], title: Callable[[Record], str], path: Path) -> None:
    """Bars of tokens per second, a row a record, with the spread of rounds."""
    figure = _figure(8, 0.8 + 2.9 * len(records))
    for index, record in enumerate(records):
        axes = figure.add_subplot(len(records), 1, index + 1)
        rows = sorted(record["systems"].items(), key=lambda item: item[1]["tokens_per_second"])
        values = [row["tokens_per_second"] for _, row in rows]
        spread = [
            [row["tokens_per_second"] - row["slowest"] for _, row in rows],
            [row["fastest"] - row["tokens_per_second"] for _, row in rows],
        ]
        colors = [OURS if name == "zenspeed" else PEERS for name, _ in rows]
        axes.barh([names[name].strip("*") for name, _ in rows], values, xerr=spread, color=colors, ecolor=THEORY)
        axes.set(title=title(record["task"]), xlabel="tokens per second")
    _save(figure, path)


def scaling(records: list[Record], path: Path) -> None:
    """What a token costs as parameters, context, vocabulary and ranks grow, and what it would by its operations alone.

    The line is the operations of a token over the rate that zenspeed reaches at 6 × 384, context 256, vocabulary 4,096.
    """

    from matplotlib.ticker import NullLocator

    def shape(record: Record, *keys: str) -> tuple[Any, ...]:
        return tuple(record["task"][key] for key in keys)

    free = [r for r in records if "layout" not in r["task"]]
    middle = next(r for r in free if shape(r, "layers", "width", "context", "vocab") == (6, 384, 256, 4096))
    rate = middle["systems"]["zenspeed"]["tokens_per_second"] * middle["task"]["flops_per_token"]
    panels = {
        "parameters": [r for r in free if shape(r, "context") == (256,)],
        "context": [r for r in free if shape(r, "layers", "width", "vocab") == (6, 384, 4096)],
        "vocab": [r for r in free if shape(r, "layers", "width", "context") == (6, 384, 256)],
    }
    layouts = [r for r in records if "layout" in r["task"]]
    figure = _figure(11, 3.6)
    for index, (key, found) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 3 + bool(layouts), index + 1)
        found = sorted(found, key=lambda r: r["task"][key])
        sizes = [r["task"][key] for r in found]
        for name, color, label in (("zenspeed", OURS, "zenspeed train"), ("ddp_compile", PEERS, "DDP, compile")):
            there = [r for r in found if name in r["systems"]]
            costs = [1e6 / r["systems"][name]["tokens_per_second"] for r in there]
            axes.plot([r["task"][key] for r in there], costs, "o-", color=color, label=label)
        axes.plot(sizes, [1e6 * r["task"]["flops_per_token"] / rate for r in found], "--", color=THEORY, label="by operations")
        axes.set(xscale="log", yscale="log", xlabel={"vocab": "vocabulary"}.get(key, key), ylabel="µs a token")
        axes.set_xticks(sizes, [_short(size) for size in sizes])
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize="small")
    if layouts:
        _layouts(figure.add_subplot(1, 4, 4), layouts)
    _save(figure, path)


def _layouts(axes: Any, records: list[Record]) -> None:
    """Processor time of a token, which would be the same for any number of processes and threads."""
    records = sorted(records, key=lambda r: (r["task"]["layout"][0] * r["task"]["layout"][1], r["task"]["layout"]))
    for place, record in enumerate(records):
        processes, threads = record["task"]["layout"]
        costs = [1e6 * processes * threads / row["tokens_per_second"] for row in record["systems"].values()]
        colors = [OURS if name == "zenspeed" else PEERS for name in record["systems"]]
        width = 0.8 / len(costs)
        axes.bar([place + width * i for i in range(len(costs))], costs, width, color=colors)
    axes.set_xticks(range(len(records)), [" × ".join(map(str, r["task"]["layout"])) for r in records])
    axes.set(xlabel="processes × threads", ylabel="µs of one core a token")


def memory(record: Record, path: Path) -> None:
    """Bars of what a rank holds, measured and by theory; below, the part that are model states."""
    figure = _figure(8, 3.2)
    axes = figure.add_subplot()
    rows = record["rows"]
    measured, places = [r["bytes"] / 2**20 for r in rows], range(len(rows))
    axes.bar([p - 0.2 for p in places], measured, 0.4, color=OURS, label="zenspeed train")
    axes.bar([p + 0.2 for p in places], [r["theory"] / 2**20 for r in rows], 0.4, color=PEERS, label="theory")
    states = [r["states"] / 2**20 for r in rows]
    axes.bar([p + 0.2 for p in places], states, 0.4, color=THEORY, label="of it model states, by ZeRO's formulas")
    axes.set_xticks(places, [f"{r['ranks']} rank{'s' * (r['ranks'] > 1)}\nstage {r['zero']}" for r in rows])
    axes.set(ylabel="MiB of a rank")
    axes.legend(fontsize="small")
    _save(figure, path)


def _short(number: float) -> str:
    return f"{number / 1e6:.0f} M" if number >= 1e6 else f"{number:,}"


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "zenspeed"}):  # the same file for the same figures
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure

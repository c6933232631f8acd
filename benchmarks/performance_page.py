"""Writes the figures of docs/performance.md and its plot from benchmarks/results/train_speed.jsonl: the newest of each point.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_speed.jsonl"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: python benchmarks/performance_page.py -->", "<!-- end of figures -->"
NAMES = {
    "zenspeed": "**zenspeed train**",
    "hf": "HF Trainer, bf16",
    "hf_compile": "HF Trainer, bf16, compile",
    "deepspeed_zero1": "DeepSpeed 0.19.8, ZeRO-1, bf16, 2 processes",
    "deepspeed_zero2": "DeepSpeed 0.19.8, ZeRO-2, bf16, 2 processes",
    "ddp": "DDP, autocast, 2 processes",
    "ddp_compile": "DDP, autocast, compile, 2 processes",
    "fully_shard": "fully_shard, bf16, 2 processes",
    "litgpt": "LitGPT's model under Fabric, bf16-true",
    "nanogpt": "nanoGPT's loop on a CPU (fp32)",
}


def main() -> None:
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        task = record["task"]
        key = tuple(task[k] for k in ("vocab", "layers", "width", "context", "batch"))
        main = (*key, len(record["systems"]) > 4)  # the main table has them all, other points the fastest
        # Peers that the newest run of a shape left out are shown as an earlier one found them, beside the zenspeed of that day.
        before = points.get(main, {"systems": {}, "earlier": {}, "time": ""})
        earlier = before["earlier"] | {name: (before["time"], row) for name, row in before["systems"].items()}
        points[main] = record | {"earlier": {n: found for n, found in earlier.items() if n not in record["systems"]}}
    wide = [r for key, r in sorted(points.items()) if key[-1]]
    other = [r for key, r in sorted(points.items()) if not key[-1]]
    figures = "\n".join(main_table(record) for record in wide) + ("\n" + points_table(other) if other else "")
    plot(wide)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{figures.strip()}\n{END}{after}", encoding="utf-8")


def shape(task: dict[str, Any]) -> str:
    return f"{task['layers']} × {task['width']}, context {task['context']:,}, vocabulary {task['vocab']:,}"


def main_table(record: dict[str, Any]) -> str:
    task, machine, systems = record["task"], record["machine"], record["systems"]
    rows = [
        f"### {shape(task)}",
        "",
        f"{task['parameters'] / 1e6:.1f} M parameters, {task['batch'] * task['context']:,} tokens a step, "
        f"{record['rounds']} rounds of {record['steps']} steps. {machine['cores']} cores of an {machine['processor']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, torch {machine['packages']['torch']}, {record['time']}, "
        f"commit {record['commit']}; bf16 products reach {record['peak_flops'] / 1e9:,.0f} GFLOP/s, which is 100 % MFU.",
        "",
        "| system | tokens/s (slowest–fastest round) | MFU | zenspeed is | peak memory, MiB | first step, s | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    all_rows = [(name, "", row) for name, row in systems.items()]
    all_rows += [(name, f", run of {time}", row) for name, (time, row) in record["earlier"].items()]
    for name, when, row in sorted(all_rows, key=lambda item: -item[2]["tokens_per_second"]):
        ratio = "" if name == "zenspeed" else f"{row['zenspeed_is']:.2f} ×"
        far = "own weights" if name == "litgpt" else "" if name == "zenspeed" else f"{row['largest_loss_difference']:.0e}"
        spread = f"{row['slowest']:,.0f}–{row['fastest']:,.0f}"
        rows.append(
            f"| {NAMES.get(name, name)}{when} | {row['tokens_per_second']:,.0f} ({spread}) | "
            f"{row['mfu']:.0%} | {ratio} | {row['peak_bytes'] / 2**20:,.0f} | {row['first_step_seconds']:.1f} | {far} |"
        )
    return "\n".join([*rows, ""])


def points_table(records: list[dict[str, Any]]) -> str:
    names = sorted({name for r in records for name in r["systems"] if name != "zenspeed"}, key=list(NAMES).index)
    head = ["model", "parameters", "zenspeed, tokens/s", "MFU", *(f"is … × {NAMES[n]}" for n in names)]
    rows = ["### Peers in a run of their own, and other shapes", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for record in records:
        task, ours = record["task"], record["systems"]["zenspeed"]
        ratios = [f"{record['systems'][n]['zenspeed_is']:.2f}" if n in record["systems"] else "" for n in names]
        cells = [shape(task), f"{task['parameters'] / 1e6:.1f} M", f"{ours['tokens_per_second']:,.0f}", f"{ours['mfu']:.0%}"]
        rows.append(f"| {' | '.join([*cells, *ratios])} |")
    return "\n".join([*rows, ""])


def plot(records: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 2.9 * len(records)), layout="constrained")
    FigureCanvasSVG(figure)
    for index, record in enumerate(records):
        axes = figure.add_subplot(len(records), 1, index + 1)
        rows = sorted(record["systems"].items(), key=lambda item: item[1]["tokens_per_second"])
        values = [row["tokens_per_second"] for _, row in rows]
        spread = [
            [row["tokens_per_second"] - row["slowest"] for _, row in rows],
            [row["fastest"] - row["tokens_per_second"] for _, row in rows],
        ]
        colors = ["#c1121f" if name == "zenspeed" else "#9db4c0" for name, _ in rows]
        axes.barh([NAMES[name].strip("*") for name, _ in rows], values, xerr=spread, color=colors, ecolor="#444444")
        axes.set(title=shape(record["task"]), xlabel="tokens per second")
    figure.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()

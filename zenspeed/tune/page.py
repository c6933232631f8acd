"""What a tuning found, for people: tune.html with our own drawings, and the comment at the head of the tuned recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenspeed.report import parts
from zenspeed.report.charts import Bar, Series, chart, intervals
from zenspeed.report.page import document, write_page

Record = Mapping[str, Any]


def write(folder: Path, record: Record) -> Path:
    """tune.html."""
    body = [
        parts.section("What was chosen, and why", f"<pre>{parts.escape(chr(10).join(lines_of(record)))}</pre>"),
        parts.section("Importance of each key", parts.figure("share in how well trials did", _importance(record))),
        parts.section("Trials", _trials(record), f'<div class="charts">{_by_key(record)}</div>'),
        parts.section("Learning-rate range test", parts.figure("loss while the rate grows", _range_test(record))),
        parts.section("Layouts", _layouts(record)),
    ]
    return write_page(folder / "tune.html", document(f"tuning of {record['source']}", body))


def lines_of(record: Record) -> list[str]:
    """What was tried, what it cost, what was chosen and how sure that is."""
    lines = [f"zenspeed tune: {record['seconds'] / 60:.1f} minutes on {record['cores']} cores"]
    lines += [
        stage["said"] for name in ("layout", "micro_batch", "noise", "rate", "search", "verdict") if (stage := record.get(name))
    ]
    lines += [f"set: {part}" for part in record.get("chosen", [])] or ["set: nothing; the recipe stays as it is"]
    if (folds := record.get("folds")) is not None:
        lines.append(folds["said"])
    return lines


def _importance(record: Record) -> str:
    shares = record.get("importance", {})
    bars = [Bar(key, share, None, None, f"{share:.2f}") for key, share in sorted(shares.items(), key=lambda x: -x[1])]
    return intervals(bars, 0.0, 1.0)


def _trials(record: Record) -> str:
    trials = record.get("trials", [])
    if not trials:
        return ""
    keys = list(trials[0]["params"])
    rows = [
        [
            t["number"],
            t["state"],
            *(_short(t["params"].get(key)) for key in keys),
            *map(_short, t["values"] or ["–"]),
            t["died"],
        ]
        for t in trials
    ]
    names = record["metrics"]
    return parts.table(["trial", "state", *keys, *names, "died of"], rows, range(2, 2 + len(keys) + len(names)))


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else value


def _by_key(record: Record) -> str:
    """Values of the first metric against each key that is a number."""
    drawn = []
    trials = [t for t in record.get("trials", []) if t["values"]]
    for key in trials[0]["params"] if trials else ():
        points = [(t["params"][key], t["values"][0]) for t in trials if isinstance(t["params"][key], (int, float))]
        if len(points) < 3:
            continue
        positive = all(x > 0 for x, _ in points)
        shown = [(math.log10(x), y) for x, y in points] if positive else points
        name = f"log10 {key}" if positive else key
        drawn.append(parts.figure(key, chart([Series("", shown, "dots")], name, record["metrics"][0])))
    return "".join(drawn)


def _range_test(record: Record) -> str:
    rate = record.get("rate")
    if not rate:
        return ""
    series = [
        Series(f"seed {i + 1}", list(zip(rate["log10_rates"], curve, strict=False)))
        for i, curve in enumerate(rate["curves"][:6])
    ]
    return chart(series, "log10 of the rate", "loss")


def _layouts(record: Record) -> str:
    tried = record.get("layout", {}).get("tried", [])
    rows = [
        [
            t["layout"],
            f"{t['planned']:,.0f}" if t["planned"] else "–",
            t["died"] or f"{t['speed']:,.0f}",
            f"{t['gigabytes']:.2f}",
        ]
        for t in tried
    ]
    return parts.table(["layout", "planned tokens/s", "measured", "GB"], rows, (1, 2, 3))

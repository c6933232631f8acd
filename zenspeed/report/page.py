"""One HTML file that needs nothing else: of a run, of several beside each other, or of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zenspeed.config import write_atomically
from zenspeed.errors import InputError
from zenspeed.evaluate.compare import Comparison, compare_files
from zenspeed.evaluate.interval import RESAMPLES, SEED
from zenspeed.report import parts
from zenspeed.report.charts import Bar, Series, chart, intervals
from zenspeed.report.collect import RunReport, figures_by_name, read_report, write_content
from zenspeed.report.data import data_report
from zenspeed.report.figures import named
from zenspeed.report.words import Words, escape, sentence

_SWITCH = (
    '<fieldset class="language"><label><input type="radio" name="language" id="en" checked>English</label>'
    '<label><input type="radio" name="language" id="zh">中文</label></fieldset>'
)
_INTERVALS = "Intervals: Wilson's for shares, else a bootstrap over rows"
_MOST_RUNS = 6


def write_report(
    folder: Path,
    figures: Mapping[str, Any],
    facts: Mapping[str, Any],
    data: Mapping[str, Any],
    looked_at: Mapping[str, Any] | None = None,
) -> Path:
    """At the end of a run: report.json and report.html in its folder. looked_at: what data_report.json is to hold."""
    write_content(folder, figures, facts, data)
    if looked_at is not None:
        write_atomically(folder / "data_report.json", json.dumps(looked_at, ensure_ascii=False))
    return write_page(folder / "report.html", run_page(read_report(folder)))


def write_page(path: Path, page: str) -> Path:
    try:
        write_atomically(path, page)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def run_page(run: RunReport) -> str:
    """The page of one run."""
    content = run.content
    figures, found = figures_by_name(content), content["predictions"] or {}
    again = f"zenspeed train {run.folder}/recipe.yaml --set run.folder=again"
    warned = list(found.get("warnings", ()))
    body = [
        parts.section("Summary", parts.cards(figures), _facts(content["facts"]), parts.warnings(warned)),
        parts.curves(run.metrics),
        parts.section("Figures", parts.figure_table(figures.values()), _note()),
    ]
    if found:
        body += [parts.of_labels(found), parts.by_part(found), parts.examples(found)]
    if run.samples:
        body.append(parts.section("Samples", f"<pre>{escape(run.samples)}</pre>"))
    body += [
        parts.section("Data", data_report(run.data) if run.data else "", _data(content["data"])),
        parts.section("Recipe", f"<pre>{escape(run.recipe)}</pre>"),
        parts.section("Environment", _facts(_flat(run.environment))),
        parts.section("How to repeat it", f"<pre>{escape(again)}</pre>"),
    ]
    return document(run.name, body)


def evaluation_page(found: Mapping[str, Any], command: str) -> str:
    """The page of an evaluation, as `zenspeed evaluate` makes it. command: how it was made."""
    figures = {f["name"]: f for f in found["figures"] if f["slice"] == "all"}
    facts = {"Model": found.get("model", "–"), "Data": found["source"], "n": f"{found['n']:,}"}
    body = [
        parts.section("Summary", parts.cards(figures), _facts(facts), parts.warnings(found["warnings"])),
        parts.section("Figures", parts.figure_table(figures.values()), _note()),
        parts.of_labels(found),
        parts.by_part(found),
        parts.examples(found),
        parts.section("How to repeat it", f"<pre>{escape(command)}</pre>"),
    ]
    return document(str(found.get("model", found["source"])), body)


def comparison_page(runs: Sequence[RunReport]) -> str:
    """The page of several runs: figures side by side, curves in one drawing, tests on the same rows, recipes' differences.

    Raises:
        InputError: more runs than a drawing has colours for.
    """
    if len(runs) > _MOST_RUNS:
        raise InputError(f"report: {len(runs)} runs; compare {_MOST_RUNS} or fewer on a page")
    names = _names(runs)
    figures = [figures_by_name(run.content) for run in runs]
    common = [name for name in figures[0] if all(name in f for f in figures)]
    rows: list[list[object]] = [[named(name), *(_cell(f[name]) for f in figures)] for name in common]
    drawn = []
    for name in [n for n in parts.HEADLINES if n in common][:4]:
        bars = [
            Bar(label, f[name]["value"], f[name]["low"], f[name]["high"], _cell(f[name]))
            for label, f in zip(names, figures, strict=True)
            if f[name]["value"] is not None
        ]
        drawn.append(parts.figure(named(name), intervals(bars)))
    losses = [
        Series(label, [(r["tokens"], r["validation_loss"]) for r in run.metrics if "validation_loss" in r])
        for label, run in zip(names, runs, strict=True)
    ]
    drawing = chart([s for s in losses if s.points], "tokens", "validation loss")
    body = [
        parts.section("Summary", f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""),
        parts.section("Whether they differ", _tests(runs, names)),
        parts.section("Loss", parts.figure("validation loss", drawing)),
        parts.section("Figures", parts.table(["figure", *names], rows, range(1, len(runs) + 1)), _note()),
        parts.section("What differs in the recipes", _differences(runs, names)),
    ]
    return document(" · ".join(names), body)


def compare_runs(folders: Sequence[Path]) -> str:
    """The page of one run's folder, or of several."""
    runs = [read_report(folder) for folder in folders]
    return run_page(runs[0]) if len(runs) == 1 else comparison_page(runs)


def document(title: str, body: Sequence[str]) -> str:
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body>{_SWITCH}<h1>{escape(title)}</h1>{''.join(body)}</body></html>\n"
    )


def _names(runs: Sequence[RunReport]) -> list[str]:
    """The folders' names, with their parents' where two are alike."""
    names = [run.name for run in runs]
    return [str(run.folder) if names.count(run.name) > 1 else run.name for run in runs]


def _note() -> str:
    return f'<p class="soft">{Words(_INTERVALS)}, {RESAMPLES:,} {Words("resamples, seed")} {SEED}.</p>'


def _facts(facts: Mapping[str, Any]) -> str:
    return parts.table(("", ""), [(Words(str(k)), v) for k, v in facts.items()]).replace("<tr><th></th><th></th></tr>", "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def _data(data: Mapping[str, Any]) -> str:
    return _facts(
        {k: f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else v for k, v in _flat(data).items() if v != []}
    )


def _cell(f: Mapping[str, Any]) -> str:
    return f["reason"] if f["value"] is None else f"{parts.number(f['value'])} [{parts.interval(f)}]"


def _tests(runs: Sequence[RunReport], names: Sequence[str]) -> str:
    folders = [run.folder for run in runs if (run.folder / "predictions.jsonl").exists()]
    if len(folders) < len(runs):
        return ""
    try:
        found = compare_files(folders)
    except InputError as error:
        return f"<p>{escape(error)}</p>"
    name = {str(run.folder): label for run, label in zip(runs, names, strict=True)}
    head = ("first", "second", "figure", "difference", "95 % interval", "p", "n", "conclusion")
    return parts.table(head, [_test(c, name) for c in found], range(3, 7))


def _test(c: Comparison, name: Mapping[str, str]) -> tuple[object, ...]:
    said = c.conclusion.replace(c.first, name[c.first]).replace(c.second, name[c.second])
    low_high = f"{c.low:+.4f} … {c.high:+.4f}"
    return (name[c.first], name[c.second], c.metric, f"{c.difference:+.4f}", low_high, f"{c.p:.3g}", f"{c.n:,}", sentence(said))


def _differences(runs: Sequence[RunReport], names: Sequence[str]) -> str:
    flat = [_flat(yaml.safe_load(run.recipe) or {}) for run in runs]
    keys = dict.fromkeys(key for f in flat for key in f if not key.startswith("run."))
    rows = [
        (key, *(json.dumps(f.get(key), ensure_ascii=False) for f in flat))
        for key in keys
        if len({json.dumps(f.get(key), ensure_ascii=False) for f in flat}) > 1
    ]
    return parts.table(["key", *names], rows)

"""The sections of a page that show one evaluation: figures, curves, matrix, parts, examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from zenspeed.report.charts import Bar, Series, chart, intervals, matrix
from zenspeed.report.figures import defined, named
from zenspeed.report.words import Words, escape, sentence

Row = Mapping[str, Any]
_MOST_MATRIX = 40
_MOST_LINES = 6
_DIGITS = "0123456789+-"
HEADLINES = (
    "test_accuracy", "accuracy", "test_f1_macro", "f1_macro", "mcc", "spearman", "exact_match", "token_f1", "bleu", "chrf",
    "rougeL", "bits_per_byte", "perplexity", "test_loss", "loss",
)  # fmt: skip


def section(title: str, *body: str) -> str:
    """A heading and what stands under it; nothing where there is nothing to show."""
    content = "".join(body)
    return f"<section><h2>{Words(title)}</h2>{content}</section>" if content else ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """An HTML table; cells are escaped, unless they are `Words`. numbers: columns of figures."""
    first = "".join(f"<th>{Words(h)}</th>" for h in head)
    lines = []
    for row in rows:
        cells = (
            f'<td class="{"n" if i in numbers and str(cell)[:1] in _DIGITS else "t"}">{_cell(cell)}</td>'
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{first}</tr>{"".join(lines)}</table></div>' if lines else ""


def _cell(cell: object) -> str:
    return str(cell) if isinstance(cell, Words) else escape(cell)


def figure(title: str | Words, drawing: str, note: str = "") -> str:
    if not drawing:
        return ""
    below = f'<p class="soft">{Words(note)}</p>' if note else ""
    return f"<figure><figcaption>{title if isinstance(title, Words) else Words(title)}</figcaption>{drawing}{below}</figure>"


def number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e5 else f"{value:,.4g}"


def interval_cell(f: Row) -> Words:
    """The interval, or why there is none, in both languages."""
    return Words(interval(f)) if f["low"] is not None else sentence(f["reason"] or "")


def interval(f: Row) -> str:
    if f["value"] is None or f["low"] is None:
        return f["reason"] or ""
    return f"{number(f['low'])} … {number(f['high'])}"


def cards(figures: Mapping[str, Row]) -> str:
    """The figures that matter most, large."""
    found = []
    for name in [name for name in HEADLINES if name in figures][:4]:
        f = figures[name]
        value = Words("not defined") if f["value"] is None else number(f["value"])
        found.append(
            f'<div class="card">{named(name)}<b>{value}</b><small>{interval_cell(f)}</small><small>n {f["n"]:,}</small></div>'
        )
    return f'<div class="cards">{"".join(found)}</div>' if found else ""


def figure_table(figures: Collection[Row]) -> str:
    """p has a column where any of them comes with a test."""
    tested, rows = any(f.get("p") is not None for f in figures), []
    for f in figures:
        value: object = Words("not defined") if f["value"] is None else number(f["value"])
        p = ("" if f.get("p") is None else f"{f['p']:.3g}",) if tested else ()
        rows.append((named(f["name"]), value, interval_cell(f), *p, f"{f['n']:,}", defined(f["name"], f["definition"])))
    head = ("figure", "value", "95 % interval", *(("p",) if tested else ()), "n", "definition")
    return table(head, rows, range(1, len(head) - 1))


def curves(metrics: Sequence[Row]) -> str:
    """Loss, learning rate and gradient norm over the run."""
    train = [(r.get("tokens", r["step"]), r["loss"]) for r in metrics if "loss" in r]
    held = [(r.get("tokens", r["step"]), r["validation_loss"]) for r in metrics if "validation_loss" in r]
    series = [Series("training", train, "thin"), Series("validation", held)]
    loss = chart([s for s in series if s.points], "tokens", "loss (nats)")
    norm = [(r["step"], r["grad_norm"]) for r in metrics if r.get("grad_norm") is not None]
    rate = [(r["step"], r["lr"]) for r in metrics if "lr" in r]
    return section(
        "Loss",
        '<div class="charts">' if loss else "",
        figure("Loss", loss),
        figure("learning rate", chart([Series("", rate)], "step", "learning rate")),
        figure("gradient norm", chart([Series("", norm, "thin")], "step", "gradient norm")),
        "</div>" if loss else "",
    )


def of_labels(found: Row) -> str:
    """Confusion matrix, ROC, precision-recall and calibration."""
    parts = []
    if "confusion" in found:
        labels, counts = found["confusion"]["labels"], found["confusion"]["counts"]
        if len(labels) <= _MOST_MATRIX:
            note = f'<p class="soft">{Words("Rows are the true labels, columns the predicted ones.")}</p>'
            parts.append(section("Confusion matrix", matrix([str(x) for x in labels], counts), note))
    names = list(found.get("curves", ()))[:_MOST_LINES]
    drawn = []
    for key, title, x, y in (
        ("roc", "ROC curve", "false positive rate", "true positive rate"),
        ("precision_recall", "Precision and recall", "recall", "precision"),
    ):
        series = [Series(name, [(a, b) for a, b in found["curves"][name][key]], "path") for name in names]
        series = [s._replace(style="line") for s in series]
        drawn.append(figure(title, chart(series, x, y, x_range=(0, 1), y_range=(0, 1), diagonal=key == "roc")))
    if bins := found.get("reliability"):
        most = max(b["n"] for b in bins)
        dots = Series(
            "", [(b["confidence"], b["accuracy"]) for b in bins], "dots", [2.5 + 5 * (b["n"] / most) ** 0.5 for b in bins]
        )
        drawing = chart([dots], "probability said", "share that is right", x_range=(0, 1), y_range=(0, 1), diagonal=True)
        drawn.append(figure("Calibration", drawing, "Below the line: too sure of itself. Larger dots hold more rows."))
    if any(drawn):
        parts.append(f'<section class="charts">{"".join(drawn)}</section>')
    return "".join(parts)


def by_part(found: Row) -> str:
    """The main figure of each slice as a drawing, and gaps, thresholds and changed texts as tables."""
    figures = [f for f in found["figures"] if f["slice"] != "all"]
    name = next((h for h in HEADLINES if any(f["name"] == h for f in figures)), None)
    bars = [
        Bar(f["value_of_slice"], f["value"], f["low"], f["high"], f"{number(f['value'])} [{interval(f)}], n {f['n']:,}")
        for f in figures
        if f["name"] == name and f["value"] is not None
    ]
    rows = [(f["value_of_slice"], named(f["name"]), number(f["value"]), interval_cell(f), f"{f['n']:,}") for f in figures
            if f["value"] is not None and "[" not in f["name"]]  # fmt: skip
    listed = table(("part", "figure", "value", "95 % interval", "n"), rows, (2, 3, 4))
    drawing = figure(named(name or ""), intervals(bars))
    parts = [section("By part", drawing, f"<details><summary>{Words('Figures')}</summary>{listed}</details>" if rows else "")]
    parts.append(section("Gaps between groups", figure_table(found.get("fairness", ()))))
    parts.append(section("Thresholds", _thresholds(found.get("thresholds", ()))))
    changed = [
        (e["change"], named(e["metric"]), number(e["before"]), number(e["after"]),
         f"{e['difference']:+.4f} [{e['low']:+.4f}, {e['high']:+.4f}]", f"{100 * e['answers_changed']['value']:.1f} %")
        for e in found.get("robustness", ())
    ]  # fmt: skip
    head = ("change", "figure", "before", "after", "difference", "answers changed")
    return "".join([*parts, section("Changed texts", table(head, changed, (2, 3, 4, 5)))])


def _thresholds(choices: Iterable[Row]) -> str:
    rows = []
    for c in choices:
        if c["threshold"] is None:
            rows.append((c["label"], c["wanted"], sentence(c["reason"]), "", ""))
        else:
            reached = (f"{number(c[k]['value'])} [{interval(c[k])}]" for k in ("precision", "recall"))
            rows.append((c["label"], c["wanted"], number(c["threshold"]), *reached))
    return table(("label", "wanted", "threshold", "precision", "recall"), rows, (2, 3, 4))


def examples(found: Row) -> str:
    """Mistakes, confused pairs, contradictions; or some answers."""
    truth = "reference" if found.get("kind") == "texts" else "label"
    wrong = list(found.get("mistakes", ()))
    measure = next((k for k in ("confidence", "error", "token_f1", "rank") if wrong and k in wrong[0]), "confidence")
    rows = [(f"{m['row']:,}", m["text"], *_answer(m, truth), _measure(m[measure])) for m in wrong]
    title = "The most confident mistakes" if found.get("kind") == "labels" else "The worst answers"
    parts = [
        _titled(title, table(("row", "text", *(() if measure == "rank" else ("truth", "prediction")), measure), rows, (0, 4)))
    ]
    pairs = [(p["label"], p["prediction"], f"{p['n']:,}", f"{100 * p['share']:.1f} %") for p in found.get("confused", ())]
    parts.append(_titled("Most confused pairs", table(("truth", "prediction", "rows", "share of the label"), pairs, (2, 3))))
    twins = [
        (p["label"], p["text"], p["other_label"], p["other_text"]) for p in found.get("contradictions", {}).get("pairs", ())
    ]
    head = ("label", "text", "other label", "other text")
    parts.append(_titled("Like texts with different labels", table(head, twins)))
    if not rows and found.get("examples"):
        columns = [c for c in found["examples"][0] if c != "scores"][:5]
        shown = [tuple(str(e.get(c, ""))[:300] for c in columns) for e in found["examples"]]
        parts.append(_titled("Some answers", table(columns, shown)))
    return section("Examples", *parts)


def _titled(title: str, content: str) -> str:
    return f"<h3>{Words(title)}</h3>{content}" if content else ""


def _answer(mistake: Row, truth: str) -> tuple[object, ...]:
    """What was right and what was said; nothing of a ranking."""
    return (_reference(mistake[truth]), mistake["prediction"]) if "prediction" in mistake else ()


def _measure(value: object) -> str:
    return number(value) if isinstance(value, float) else "none" if value is None else str(value)


def _reference(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


def warnings(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{sentence(line)}</li>" for line in lines)
    return f'<ul class="warnings">{items}</ul>' if items else ""

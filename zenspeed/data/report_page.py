"""The page of a data report: the same sections for a terminal and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zenspeed.data.report import Report, Statistics, label_counts, quantiles, truncation

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #8886}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600}
ul.findings{list-style:none;padding:0}ul.findings li{padding:.35rem .7rem;margin:.3rem 0;border-left:.3rem solid #d39e00}
ul.findings li{background:#d39e0018}
ul.findings li.stop{border-color:#c62828;background:#c6282818}ul.findings li.good{border-color:#2e7d32;background:#2e7d3218}
.bar{display:inline-block;height:.7em;background:#3b78c3;min-width:1px}td,th{white-space:nowrap}
td.text{white-space:normal;overflow-wrap:anywhere;min-width:12rem}.table{overflow-x:auto}
"""

_LONG = ("text", "label", "what")  # columns that may be broken into lines


class Finding(NamedTuple):
    """One sentence on what will go wrong."""

    level: str
    """stop: do not train on it; look: know about it; good: nothing to do."""
    text: str


class Section(NamedTuple):
    """A table with a title. Columns of numbers are right-aligned; `bars` are shares in [0, 1], one a row."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bars: list[float] | None = None


def findings(r: Report) -> list[Finding]:
    """What to put right, worst first."""
    out: list[Finding] = []
    if r.leakage is not None and r.leakage.exact + r.leakage.near:
        out.append(Finding("stop", f"Leakage: {r.leakage}. Figures on this test set would be too good."))
    for name, s in _splits(r):
        out += _split_findings(name, s)
    balance = label_counts(r.train)
    if len(balance) > 1 and max(balance.values()) > 4 * min(balance.values()):
        rare = min(balance, key=balance.__getitem__)
        share = f"{balance[rare]:,} of {sum(balance.values()):,} rows"
        out.append(Finding("look", f"Labels are uneven: {rare!r} has {share}; report F1 beside accuracy."))
    for name, c in r.coverage.items():
        if c.unknown_rate > 0.01:
            level = "stop" if c.unknown_rate > 0.1 else "look"
            out.append(Finding(level, f"The tokenizer does not know {c.unknown_rate:.1%} of the tokens ({name})."))
    out.sort(key=lambda f: f.level != "stop")
    return out or [Finding("good", "Nothing that stands out.")]


def _split_findings(name: str, s: Statistics) -> list[Finding]:
    out = []
    counts = s.counts()
    conflicts = counts["texts with several labels"]
    if conflicts:
        level = "stop" if conflicts > 0.01 * len(s.texts) else "look"
        out.append(Finding(level, f"{conflicts:,} texts of {name} carry more than one label."))
    copies = counts["rows with text"] - counts["different texts"]
    if copies:
        share = copies / counts["rows with text"]
        advice = "split only after they are gone"
        out.append(Finding("look", f"{copies:,} rows of {name} ({share:.0%}) repeat the text of an earlier row: {advice}."))
    if s.read["bad_rows"]:
        first = "; ".join(s.read["first_bad"])
        out.append(Finding("look", f"{s.read['bad_rows']:,} rows of {name} cannot be read: {first}."))
    for what, quotes in s.odd.items():
        if quotes.count:
            row, text = quotes.first[0]
            out.append(Finding("look", f"{quotes.count:,} rows of {name}: {what}; the first is row {row}: {text!r}."))
    return out


def sections(r: Report) -> list[Section]:
    """The tables of the page."""
    splits = _splits(r)
    counts = {name: s.counts() for name, s in splits}
    names = tuple(name for name, _ in splits)
    out: list[Section] = [
        Section("Rows", ("", *names), [(key, *(f"{counts[n][key]:,}" for n in names)) for key in counts["train"]])
    ]
    for name, s in splits:
        labels = label_counts(s)
        if labels:
            total = sum(labels.values())
            shown = list(labels.items())[:20]
            balance = [(repr(label), f"{n:,}", f"{n / total:.1%}") for label, n in shown]
            out.append(
                Section(
                    f"Labels of {name} ({len(labels):,})", ("label", "rows", "share"), balance, [n / total for _, n in shown]
                )
            )
    for name, s in splits:
        both = {"characters": quantiles(s.characters), "tokens": quantiles(s.tokens)}
        rows = [(unit, *(f"{v:,.10g}" for v in q.values())) for unit, q in both.items()]
        out.append(Section(f"Lengths of {name}", ("", *both["tokens"]), rows))
        out.append(_histogram(name, s))
        cuts = [(f"{t.length:,}", f"{t.rows_cut:.2%}", f"{t.tokens_lost:.2%}") for t in truncation(s.tokens)]
        out.append(Section(f"What cutting {name} would lose", ("sequence length", "rows cut", "tokens lost"), cuts))
    language = [(name, f"{share:.1%}") for name, share in r.languages.items()]
    out.append(Section("Language (a sample)", ("language", "share"), language, list(r.languages.values())))
    held = [
        (n, f"{c.characters:,}", f"{c.tokens_per_character:.3f}", f"{c.distinct:,}", f"{c.unknown_rate:.2%}")
        for n, c in r.coverage.items()
    ]
    head = ("script", "characters", "tokens a character", "different tokens", "unknown")
    out.append(Section(f"Tokens of a sample: {r.tokenizer}", head, held))
    odd = [
        (what, name, f"{q.count:,}", ", ".join(str(row) for row, _ in q.first))
        for name, s in splits
        for what, q in s.odd.items()
        if q.count
    ]
    if odd:
        out.append(Section("Odd rows", ("what", "set", "rows", "first rows"), odd))
    if r.leakage is not None and r.leakage.examples:
        leaks = [(str(e.test_row), str(e.train_row), e.kind, e.text[:100]) for e in r.leakage.examples]
        out.append(Section("Test rows that are in the training set", ("test row", "train row", "kind", "text"), leaks))
    return out


def terminal(r: Report) -> None:
    """Prints the page."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False)
    mark = {"stop": "[bold red]stop[/]", "look": "[yellow]look[/]", "good": "[green]good[/]"}
    for finding in findings(r):
        console.print(f"{mark[finding.level]}  {escape(_plain(finding.text))}")
    for section in sections(r):
        table = Table(box=None, pad_edge=False)
        for i, head in enumerate(section.head):
            table.add_column(escape(head), justify="right" if i and _numeric(section, i) else "left")
        if section.bars:
            table.add_column("")
        for i, row in enumerate(section.rows):
            bar = ["█" * round(30 * section.bars[i])] if section.bars else []
            table.add_row(*(escape(_plain(cell)) for cell in row), *bar)
        console.print(f"\n[bold]{escape(section.title)}[/]")
        console.print(table)
    console.print(f"\nSuggested sequence length: [bold]{r.suggested_length}[/] tokens (model.context={r.suggested_length})")


def page(r: Report) -> str:
    """The page as HTML: no scripts, nothing loaded from elsewhere."""

    def text(s: str) -> str:
        return html.escape(_plain(s))

    items = "".join(f'<li class="{f.level}">{text(f.text)}</li>' for f in findings(r))
    body = [f"<h1>{text(r.train.source)}</h1>", f'<ul class="findings">{items}</ul>']
    body.append(f"<p>Suggested sequence length: <b>{r.suggested_length}</b> tokens (<code>model.context</code>).</p>")
    for section in sections(r):
        kinds = [
            ' class="n"' if i and _numeric(section, i) else ' class="text"' if name in _LONG else ""
            for i, name in enumerate(section.head)
        ]
        head = "".join(f"<th{kind}>{text(h)}</th>" for kind, h in zip(kinds, section.head, strict=True))
        rows = []
        for i, row in enumerate(section.rows):
            cells = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
            bar = (
                f'<td><span class="bar" style="width:calc({section.bars[i]:.4f}*min(15rem,30vw))"></span></td>'
                if section.bars
                else ""
            )
            rows.append(f"<tr>{cells}{bar}</tr>")
        extra = "<th></th>" if section.bars else ""
        table = f"<table><tr>{head}{extra}</tr>{''.join(rows)}</table>"
        body.append(f'<h2>{text(section.title)}</h2><div class="table">{table}</div>')
    title = text(r.train.source)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Data report: {title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _splits(r: Report) -> list[tuple[str, Statistics]]:
    return [("train", r.train), *([("test", r.test)] if r.test else [])]


def _histogram(name: str, s: Statistics) -> Section:
    """Rows by number of tokens, in classes that double."""
    edges = [0, *(2**k for k in range(3, 24))]
    counts = np.histogram(s.tokens, edges)[0]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
    rows = [(f"{edges[i]:,} … {edges[i + 1] - 1:,}", f"{counts[i]:,}") for i in range(last)]
    most = max(int(counts.max()), 1)
    return Section(f"Tokens a row, {name}", ("tokens", "rows"), rows, [int(c) / most for c in counts[:last]])


def _numeric(section: Section, i: int) -> bool:
    return all(row[i][:1].isdigit() for row in section.rows) and section.head[i] != "text"


def _plain(text: str) -> str:
    """Control characters shown, not sent to a terminal or a page."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

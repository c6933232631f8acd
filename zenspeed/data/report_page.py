"""The page of a data report: the same sections for a terminal and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    zh: str
    """The same in Chinese."""


class Section(NamedTuple):
    """A table with a title. Columns of numbers are right-aligned; `bars` are shares in [0, 1], one a row."""

    title: str
    zh: str
    """The title in Chinese."""
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bars: list[float] | None = None
    named: bool = False
    """The first column holds words of ours, not of the data."""


def as_json(r: Report) -> dict[str, Any]:
    """The report with what its page says, for pages of other kinds."""
    said = {"findings": [f._asdict() for f in findings(r)], "sections": [s._asdict() for s in sections(r)]}
    return {"schema": "zenspeed.data_report", "version": 1, **r.as_dict(), **said}


def findings(r: Report) -> list[Finding]:
    """What to put right, worst first."""
    out: list[Finding] = []
    if r.leakage is not None and r.leakage.exact + r.leakage.near:
        said = f"Leakage: {r.leakage}. Figures on this test set would be too good."
        count = r.leakage.exact + r.leakage.near
        zh = f"泄漏：{_zh(r.held_out)}中有 {count:,} 行（{r.leakage.share:.1%}）也在训练集中，其指标会偏高。"
        out.append(Finding("stop", said.replace("test row", f"{r.held_out} row").replace("test set", f"{r.held_out} set"), zh))
    for name, s in _splits(r):
        out += _split_findings(name, s)
    balance = label_counts(r.train)
    if len(balance) > 1 and max(balance.values()) > 4 * min(balance.values()):
        rare = min(balance, key=balance.__getitem__)
        rows, total = balance[rare], sum(balance.values())
        said = f"Labels are uneven: {rare!r} has {rows:,} of {total:,} rows; report F1 beside accuracy."
        zh = f"标签不均衡：{rare!r} 只有 {total:,} 行中的 {rows:,} 行；除准确率外还应报告 F1。"
        out.append(Finding("look", said, zh))
    for name, c in r.coverage.items():
        if c.unknown_rate > 0.01:
            level = "stop" if c.unknown_rate > 0.1 else "look"
            said = f"The tokenizer does not know {c.unknown_rate:.1%} of the tokens ({name})."
            out.append(Finding(level, said, f"分词器不认识 {c.unknown_rate:.1%} 的词元（{name}）。"))
    out.sort(key=lambda f: f.level != "stop")
    return out or [Finding("good", "Nothing that stands out.", "没有发现明显问题。")]


def _split_findings(name: str, s: Statistics) -> list[Finding]:
    out = []
    counts, here = s.counts(), _zh(name)
    conflicts = counts["texts with several labels"]
    if conflicts:
        level = "stop" if conflicts > 0.01 * len(s.texts) else "look"
        said = f"{conflicts:,} texts of {name} carry more than one label."
        out.append(Finding(level, said, f"{here}中有 {conflicts:,} 条文本带有不止一个标签。"))
    copies = counts["rows with text"] - counts["different texts"]
    if copies:
        share = copies / counts["rows with text"]
        said = f"{copies:,} rows of {name} ({share:.0%}) repeat the text of an earlier row: split only after they are gone."
        zh = f"{here}中有 {copies:,} 行（{share:.0%}）与前面的行文本相同：去重之后再划分。"
        out.append(Finding("look", said, zh))
    if s.read["bad_rows"]:
        first, bad = "; ".join(s.read["first_bad"]), s.read["bad_rows"]
        said = f"{bad:,} rows of {name} cannot be read: {first}."
        out.append(Finding("look", said, f"{here}中有 {bad:,} 行无法读取：{first}。"))
    for what, quotes in s.odd.items():
        if quotes.count:
            row, text = quotes.first[0]
            said = f"{quotes.count:,} rows of {name}: {what}; the first is row {row}: {text!r}."
            zh = f"{here}中有 {quotes.count:,} 行：{_ODD_ZH.get(what, what)}；最先是第 {row} 行：{text!r}。"
            out.append(Finding("look", said, zh))
    return out


def sections(r: Report) -> list[Section]:
    """The tables of the page."""
    splits = _splits(r)
    counts = {name: s.counts() for name, s in splits}
    names = tuple(name for name, _ in splits)
    out: list[Section] = [
        Section(
            "Rows",
            "行数",
            ("", *names),
            [(key, *(f"{counts[n][key]:,}" for n in names)) for key in counts["train"]],
            named=True,
        )
    ]
    for name, s in splits:
        labels = label_counts(s)
        if labels:
            total = sum(labels.values())
            shown = list(labels.items())[:20]
            balance = [(repr(label), f"{n:,}", f"{n / total:.1%}") for label, n in shown]
            out.append(
                Section(
                    f"Labels of {name} ({len(labels):,})",
                    f"{_zh(name)}的标签（{len(labels):,}）",
                    ("label", "rows", "share"),
                    balance,
                    [n / total for _, n in shown],
                )
            )
    for name, s in splits:
        both = {"characters": quantiles(s.characters), "tokens": quantiles(s.tokens)}
        rows = [(unit, *(f"{v:,.10g}" for v in q.values())) for unit, q in both.items()]
        out.append(Section(f"Lengths of {name}", f"{_zh(name)}的长度", ("", *both["tokens"]), rows, named=True))
        out.append(_histogram(name, s))
        cuts = [(f"{t.length:,}", f"{t.rows_cut:.2%}", f"{t.tokens_lost:.2%}") for t in truncation(s.tokens)]
        out.append(
            Section(
                f"What cutting {name} would lose",
                f"截断{_zh(name)}会失去什么",
                ("sequence length", "rows cut", "tokens lost"),
                cuts,
            )
        )
    language = [(name, f"{share:.1%}") for name, share in r.languages.items()]
    out.append(Section("Language (a sample)", "语言（抽样）", ("language", "share"), language, list(r.languages.values())))
    held = [
        (n, f"{c.characters:,}", f"{c.tokens_per_character:.3f}", f"{c.distinct:,}", f"{c.unknown_rate:.2%}")
        for n, c in r.coverage.items()
    ]
    head = ("script", "characters", "tokens a character", "different tokens", "unknown")
    out.append(Section(f"Tokens of a sample: {r.tokenizer}", "抽样的词元", head, held, named=True))
    odd = [
        (what, name, f"{q.count:,}", ", ".join(str(row) for row, _ in q.first))
        for name, s in splits
        for what, q in s.odd.items()
        if q.count
    ]
    if odd:
        out.append(Section("Odd rows", "异常的行", ("what", "set", "rows", "first rows"), odd, named=True))
    if r.leakage is not None and r.leakage.examples:
        leaks = [(str(e.test_row), str(e.train_row), e.kind, e.text[:100]) for e in r.leakage.examples]
        title = f"{r.held_out.capitalize()} rows that are in the training set"
        out.append(
            Section(title, f"也在训练集中的{_zh(r.held_out)}行", (f"{r.held_out} row", "train row", "kind", "text"), leaks)
        )
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
    return [("train", r.train), *([(r.held_out, r.test)] if r.test else [])]


def _histogram(name: str, s: Statistics) -> Section:
    """Rows by number of tokens, in classes that double."""
    edges = [0, *(2**k for k in range(3, 24))]
    counts = np.histogram(s.tokens, edges)[0]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
    rows = [(f"{edges[i]:,} … {edges[i + 1] - 1:,}", f"{counts[i]:,}") for i in range(last)]
    most = max(int(counts.max()), 1)
    return Section(
        f"Tokens a row, {name}", f"每行词元数，{_zh(name)}", ("tokens", "rows"), rows, [int(c) / most for c in counts[:last]]
    )


_SETS_ZH = {"train": "训练集", "validation": "验证集", "test": "测试集"}
_ODD_ZH = {
    "empty": "空文本",
    "no text but another type": "不是文本而是其他类型",
    "NUL bytes": "空字节",
    "other control characters": "其他控制字符",
    "broken encoding (mojibake)": "乱码",
    "characters lost in decoding (U+FFFD)": "解码时丢失的字符（U+FFFD）",
    "markup": "标记语言",
    "longer than 20 times the median": "长于中位数的 20 倍",
}


def _zh(name: str) -> str:
    return _SETS_ZH.get(name, name)


def _numeric(section: Section, i: int) -> bool:
    return all(row[i][:1].isdigit() for row in section.rows) and section.head[i] != "text"


def _plain(text: str) -> str:
    """Control characters shown, not sent to a terminal or a page."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

"""The data report on a run's page: what `zenspeed data report` says of a file, of the rows that the run was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenspeed.report.words import ZH, Words, escape


def data_report(found: Mapping[str, Any]) -> str:
    """Findings, the suggested length, and every table, as HTML. found: of data_report.json."""
    items = "".join(f'<li class="{escape(f["level"])}">{Words(f["text"], f["zh"])}</li>' for f in found["findings"])
    length = found["suggested_length"]
    suggested = Words(
        f"Suggested sequence length: {length} tokens (model.context); at most one row in a hundred is cut.",
        f"建议的序列长度：{length} 个词元（model.context）；被截断的行不超过百分之一。",
    )
    tables = "".join(f'<div class="piece">{_table(section)}</div>' for section in found["sections"])
    listed = f'<ul class="findings">{items}</ul>{_sampled(found.get("sampled", {}))}'
    return f'{listed}<p>{suggested}</p><div class="pieces">{tables}</div>'


def _sampled(sampled: Mapping[str, Mapping[str, int]]) -> str:
    notes = []
    for name, of in sampled.items():
        some, every = f"{of['rows']:,}", f"{of['of']:,}"
        en = f"{some} of {every} rows of {name} were looked at, evenly spread; copies of rows left out are not counted."
        zh = f"{ZH.get(name, name)}：均匀抽取了 {every} 行中的 {some} 行；未抽到的行的重复不计。"
        notes.append(f'<p class="soft">{Words(en, zh)}</p>')
    return "".join(notes)


def _table(section: Mapping[str, Any]) -> str:
    rows, bars = section["rows"], section["bars"]
    if not rows:
        return ""
    numeric = [i > 0 and name != "text" and all(row[i][:1].isdigit() for row in rows) for i, name in enumerate(section["head"])]
    head = "".join(f'<th class="{"n" if n else "t"}">{Words(h)}</th>' for h, n in zip(section["head"], numeric, strict=True))
    lines = []
    for i, row in enumerate(rows):
        cells = [
            f'<td class="{"n" if n else "t"}">{Words(cell) if section["named"] and j < 2 else escape(cell)}</td>'
            for j, (cell, n) in enumerate(zip(row, numeric, strict=True))
        ]
        if bars:
            cells.append(f'<td class="share"><i style="width:{100 * bars[i]:.1f}%"></i></td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = "<th></th>" if bars else ""
    title = Words(section["title"], section["zh"])
    return f'<h3>{title}</h3><div class="wide"><table><tr>{head}{more}</tr>{"".join(lines)}</table></div>'

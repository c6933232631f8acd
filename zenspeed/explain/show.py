"""A trace for people: in the terminal some columns of every table, in HTML all numbers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator

from torch import Tensor

from zenspeed.explain.article import Claim
from zenspeed.explain.trace import Step, Trace

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem;max-width:75rem}
h1{font-size:1.5rem}summary{cursor:pointer;font-weight:600;margin:.6rem 0}code{opacity:.8}
div{overflow-x:auto;margin:.3rem 0 1rem}table{border-collapse:collapse;font-size:.8rem}
td,th{padding:.1rem .45rem;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
tr:first-child th{border-bottom:1px solid #8886}
"""


def number(value: float) -> str:
    """Four digits that count."""
    if value != value or value in (float("inf"), float("-inf")):
        return "−inf" if value < 0 else str(value)
    plain = f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"
    return plain.replace("-", "−", 1) if value < 0 else plain


def terminal(trace: Trace, columns: int, part: str | None = None) -> Iterator[str]:
    """Lines; of wide tables the first `columns` columns. `part`: only steps whose part holds that text."""
    last = None
    for step in _of_part(trace, part):
        if step.part != last:
            yield f"\n── {step.part} " + "─" * max(3, 60 - len(step.part))
            last = step.part
        width = step.value.shape[1]
        more = f"  (the first {columns} of {width} columns)" if width > columns else ""
        yield f"\n{step.name}: {step.formula}{more}"
        names = [*(step.columns or map(str, range(1, width + 1)))][:columns]
        name_width = max(map(len, step.rows), default=0)
        if step.columns:
            yield " " * name_width + "".join(f" {name[:10]:>10}" for name in names)
        for row, values in zip(step.rows, step.value[:, :columns].tolist(), strict=True):
            yield f"{row:<{name_width}}" + "".join(f" {number(v):>10}" for v in values)


def _of_part(trace: Trace, part: str | None) -> Iterable[Step]:
    return [step for step in trace.steps if part is None or part in step.part]


def checks(trace: Trace) -> str:
    """One line on what was compared with the model's own forward pass."""
    name, worst = max(trace.checks, key=lambda check: check[1])
    return (
        f"checked against the model's own forward pass in {len(trace.checks)} places (each block, and the output): "
        f"equal within {worst:.1e} of the largest number (the widest: {name})"
    )


def claim_lines(found: list[Claim]) -> list[str]:
    """What the article says beside what its numbers give."""
    lines = []
    for claim in found:
        mark = "as the article says" if claim.holds else f"the article says {_row(claim.article)}"
        lines.append(f"{claim.line} = {_row(claim.right)}: {mark}" + ("" if claim.holds else f"; {claim.why}"))
    return lines


def _row(values: list[float]) -> str:
    inner = ", ".join(number(v) for v in values)
    return inner if len(values) == 1 else f"[{inner}]"


def page(title: str, trace: Trace, notes: list[str], part: str | None = None) -> str:
    """One HTML file that needs nothing else, with every number."""
    out = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>',
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    last = None
    for step in _of_part(trace, part):
        if step.part != last:
            out.append(("</details>" if last else "") + f"<details open><summary>{html.escape(step.part)}</summary>")
            last = step.part
        out.append(f"{html.escape(step.name)}: <code>{html.escape(step.formula)}</code>{_table(step)}")
    return "\n".join([*out, "</details></html>\n"])


def _table(step: Step) -> str:
    names = step.columns or [str(i) for i in range(1, step.value.shape[1] + 1)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *names])
    rows = [f"<tr><td>{html.escape(row)}</td>{_cells(values)}</tr>" for row, values in zip(step.rows, step.value, strict=True)]
    return f"<div><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _cells(values: Tensor) -> str:
    return "".join(f"<td>{number(v)}</td>" for v in values.tolist())

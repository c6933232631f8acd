"""Drawings of the report as inline SVG: lines, points, bars with intervals, a matrix. Colours come from the page's style.

Drawn for a width of 400, so that text stays readable when a narrow screen makes it smaller. Labels on an axis are left out
where they would touch each other.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from zenspeed.report.words import svg_words

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 44
_CHARACTER = 6.4  # width of a digit at 11 px, on the safe side
_MOST_POINTS = 400
NUM_COLOURS = 6


class Series(NamedTuple):
    """Points of one line. `style`: line, thin (many noisy points), dots."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    sizes: Sequence[float] | None = None
    """Of dots: radii."""


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers inside [low, high], at most `most` and at least two where there is room for them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, most - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, step: float) -> str:
    """A number as it stands on an axis: 1500 -> 1.5k; no more places than steps of `step` need."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and step >= size / 1000:
            return f"{value / size:g}{letter}" if float(f"{value / size:g}") == value / size else f"{value / size:.4g}{letter}"
    if value and (abs(value) < 1e-3 or abs(step) < 1e-4):
        return f"{value:.1e}".replace("e-0", "e-")
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    places += round(step * 10**places, 6) != round(step * 10**places)  # 2.5 and its like
    return f"{value:.{places}f}"


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """An SVG of lines and dots with axes and a legend; empty where there are no points."""
    xs = [x for s in series for x, _ in s.points if math.isfinite(x)]
    ys = [y for s in series for _, y in s.points if math.isfinite(y)]
    if not xs or not ys:
        return ""
    x0, x1 = x_range or (min(xs), max(xs))
    y0, y1 = y_range or _padded(min(ys), max(ys))
    if not x1 > x0:
        x0, x1 = min(0.0, x0), max(x0, 1.0)
    legend = [s.name for s in series if s.name] if len(series) > 1 else []
    rows = _legend_rows(legend)
    top, height = TOP + 16 * len(rows), HEIGHT + 16 * len(rows)

    def x_at(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return height - BOTTOM - (y - y0) / (y1 - y0) * (height - BOTTOM - top)

    parts = [_axes(x0, x1, y0, y1, x_at, y_at, height)]
    if diagonal:
        parts.append(f'<path class="diagonal" d="M{x_at(x0):.1f} {y_at(y0):.1f}L{x_at(x1):.1f} {y_at(y1):.1f}"/>')
    for i, s in enumerate(series):
        parts.append(_drawn(s, i % NUM_COLOURS, x_at, y_at, (y0, y1)))
    parts.append(svg_words(x_label, f'class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 8}" text-anchor="middle"'))
    middle = (top + height - BOTTOM) / 2
    parts.append(svg_words(y_label, f'class="axis" transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle"'))
    number = {s.name: i % NUM_COLOURS for i, s in enumerate(series)}
    for line, names in enumerate(rows):
        x = float(LEFT)
        for name in names:
            y = 12 + 16 * line
            parts.append(f'<rect class="c{number[name]} key" x="{x:.0f}" y="{y - 8}" width="10" height="8"/>')
            parts.append(svg_words(_short(name), f'x="{x + 14:.0f}" y="{y}"'))
            x += _legend_width(name)
    label = html.escape(f"{y_label} over {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _legend_width(name: str) -> float:
    wide = sum(1.9 if ord(c) > 0x2E80 else 1 for c in _short(name))
    return 30 + _CHARACTER * wide


def _legend_rows(names: Sequence[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    room = 0.0
    for name in names:
        width = _legend_width(name)
        if not rows or width > room:
            rows.append([])
            room = float(WIDTH - LEFT - RIGHT)
        rows[-1].append(name)
        room -= width
    return rows


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _axes(x0: float, x1: float, y0: float, y1: float, x_at, y_at, height: int) -> str:  # type: ignore[no-untyped-def]
    parts = []
    bottom = height - BOTTOM
    y_ticks = ticks(y0, y1, 6)
    y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else y1 - y0
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y_at(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{tick_text(y, y_step)}</text>')
    x_ticks = ticks(x0, x1, 6)
    x_step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else x1 - x0
    end = -math.inf
    for x in x_ticks:
        text = tick_text(x, x_step)
        half = len(text) * _CHARACTER / 2
        at = x_at(x)
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom}v4"/>')
        if at - half > end + 4 and at + half <= WIDTH:
            parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
            end = at + half
    parts.append(f'<path class="frame" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _drawn(s: Series, colour: int, x_at, y_at, y_range: tuple[float, float]) -> str:  # type: ignore[no-untyped-def]
    points = [(x, min(max(y, y_range[0]), y_range[1])) for x, y in s.points if math.isfinite(x) and math.isfinite(y)]
    if s.style == "dots":
        sizes = s.sizes or [3.0] * len(points)
        return "".join(
            f'<circle class="c{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="{r:.1f}"/>'
            for (x, y), r in zip(points, sizes, strict=True)
        )
    step = -(-len(points) // _MOST_POINTS)
    if s.style == "thin":  # noisy: means of neighbours, so that no peak is lost by chance
        groups = [points[i : i + step] for i in range(0, len(points), step)]
        points = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    else:
        points = points[::step] + ([points[-1]] if (len(points) - 1) % step else [])
    path = "L".join(f"{x_at(x):.1f} {y_at(y):.1f}" for x, y in points)
    marks = ""
    if len(points) <= 30 and s.style == "line":
        marks = "".join(f'<circle class="c{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.5"/>' for x, y in points)
    return f'<path class="c{colour} {s.style}" d="M{path}"/>{marks}'


class Bar(NamedTuple):
    """A value with its interval and its name, and a text that says it."""

    name: str
    value: float
    low: float | None
    high: float | None
    text: str


def intervals(bars: Sequence[Bar], low: float | None = None, high: float | None = None) -> str:
    """Dots with their intervals, one a line, on one scale."""
    if not bars:
        return ""
    ends = [x for b in bars for x in (b.value, b.low, b.high) if x is not None]
    x0, x1 = (min(ends), max(ends)) if low is None or high is None else (low, high)
    if low is None or high is None:
        x0, x1 = _padded(x0, x1)
    left, line = 150, 24
    height = line * len(bars) + 28

    def at(x: float) -> float:
        return left + (min(max(x, x0), x1) - x0) / (x1 - x0) * (WIDTH - left - 14)

    parts = []
    x_ticks = ticks(x0, x1, 6)
    step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else x1 - x0
    for x in x_ticks:
        parts.append(f'<path class="grid" d="M{at(x):.1f} 4V{height - 24}"/>')
        parts.append(f'<text x="{at(x):.1f}" y="{height - 8}" text-anchor="middle">{tick_text(x, step)}</text>')
    for i, b in enumerate(bars):
        y = line * i + 16
        parts.append(svg_words(_short(b.name, 22), f'x="{left - 8}" y="{y + 4}" text-anchor="end"'))
        if b.low is not None and b.high is not None:
            parts.append(f'<path class="c0 bar" d="M{at(b.low):.1f} {y}H{at(b.high):.1f}"/>')
        parts.append(f'<circle class="c0" cx="{at(b.value):.1f}" cy="{y}" r="4"><title>{html.escape(b.text)}</title></circle>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix as an HTML table, darker where more of the true label's rows are."""
    head = "".join(f'<th scope="col">{html.escape(label)}</th>' for label in labels)
    lines = []
    for label, row in zip(labels, counts, strict=True):
        total = max(1, sum(row))
        cells = "".join(
            f'<td style="--share:{n / total:.3f}" class="{"high" if n / total > 0.55 else ""}">{n:,}</td>' for n in row
        )
        lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>')
    return f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'

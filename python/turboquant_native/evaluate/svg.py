"""The few drawings that reports need, as SVG text: a chart with axes, a grid of cells, a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#4d4d4d", "#d16ba5", "#2a9d8f")


@dataclass(frozen=True)
class Series:
    """Points of one name; `line` joins them."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float  # pixels
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            value, low, high = math.log10(value), math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        else:
            raw = (self.high - self.low) / 6
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw)
            ticks = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def _span(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def text(x: float, y: float, content: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(content)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">{"".join(parts)}</svg>'


def _axes(x: _Axis, y: _Axis, x_title: str, y_title: str) -> list[str]:
    parts = [f'<path class="axis" d="M{x.start} {y.end}V{y.start}H{x.end}"/>']
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{x.at(tick):.1f} {y.start}V{y.end}"/>' + text(x.at(tick), y.start + 16, f"{tick:g}"))
    for tick in y.ticks():
        parts.append(
            f'<path class="grid" d="M{x.start} {y.at(tick):.1f}H{x.end}"/>' + text(x.start - 6, y.at(tick) + 4, f"{tick:g}", "end")
        )
    middle = (y.start + y.end) / 2
    parts.append(text((x.start + x.end) / 2, y.start + 36, x_title))
    parts.append(text(14, middle, y_title, extra=f'transform="rotate(-90 14 {middle:.1f})"'))
    return parts


def chart(series: Sequence[Series], x_title: str, y_title: str, log: bool = False) -> str:
    """Points and lines of several series; `log`: the vertical axis is logarithmic."""
    points = [point for one in series for point in one.points]
    x = _Axis(*_span([p[0] for p in points], False), _LEFT, _WIDTH - _RIGHT)
    y = _Axis(*_span([p[1] for p in points], log), _HEIGHT - _BOTTOM, _TOP, log)
    parts = _axes(x, y, x_title, y_title)
    for number, one in enumerate(series):
        color = COLORS[number % len(COLORS)]
        places = [(x.at(a), y.at(b)) for a, b in one.points]
        if one.line:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for place, (a, b), label in zip(places, one.points, [*one.labels, *[""] * len(places)], strict=False):
            title = escape(f"{one.name} {label}: {a:.4g}, {b:.4g}")
            parts.append(f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3.5" fill="{color}"><title>{title}</title></circle>')
            if label:
                parts.append(text(place[0] + 6, place[1] - 5, label, "start"))
        parts.append(text(_WIDTH - _RIGHT - 4, _TOP + 14 + 15 * number, one.name, "end", f'style="fill:{color}"'))
    return _svg(_WIDTH, _HEIGHT, parts)


def grid(rows: Sequence[str], columns: Sequence[str], values: dict[tuple[str, str], float], high: float, form: str = "{:g}") -> str:
    """Cells shaded from 0 to `high`, with their values; missing cells stay empty."""
    cell_w, cell_h, left = max(18.0, min(34.0, 900 / max(len(columns), 1))), 20, 110
    parts = []
    for i, row in enumerate(rows):
        parts.append(text(left - 6, i * cell_h + 14, row, "end"))
        for j, column in enumerate(columns):
            if (value := values.get((row, column))) is None:
                continue
            share = min(max(value / high, 0.0), 1.0) if high > 0 else 0.0
            shade = f"hsl(207 60% {95 - 55 * share:.0f}%)"
            place = f'x="{left + j * cell_w:.1f}" y="{i * cell_h}" width="{cell_w - 1:.1f}" height="{cell_h - 1}"'
            parts.append(f'<rect {place} fill="{shade}"><title>{escape(f"{row}, layer {column}: {value:g}")}</title></rect>')
            style = 'class="cell light"' if share > 0.6 else 'class="cell"'
            parts.append(text(left + (j + 0.5) * cell_w, i * cell_h + 14, form.format(value), extra=style))
    for j, column in enumerate(columns):
        parts.append(text(left + (j + 0.5) * cell_w, len(rows) * cell_h + 14, column, extra='class="cell"'))
    return _svg(left + len(columns) * cell_w + 8, len(rows) * cell_h + 22, parts)


def histogram(counts: Sequence[float], edges: Sequence[float], x_title: str) -> str:
    """Bars between `edges` (one more than counts)."""
    x = _Axis(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    y = _Axis(0, max(*counts, 1) * 1.05, _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(x, y, x_title, "rows")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        width = max(x.at(high) - x.at(low) - 0.5, 0.5)
        parts.append(
            f'<rect x="{x.at(low):.1f}" y="{y.at(count):.1f}" width="{width:.1f}" height="{y.start - y.at(count):.1f}" fill="{COLORS[0]}"/>'
        )
    return _svg(_WIDTH, _HEIGHT, parts)

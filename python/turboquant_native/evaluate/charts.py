"""The pictures of `tqn report`, drawn by matplotlib (extra `[report]`): a curve chart, a grid of cells, a histogram.

Every picture is drawn twice, for light and for dark pages, and the page shows the one that the reader's system asks for. Texts are drawn
as outlines, so that they take the room that was measured for them, whatever fonts the reader has.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConvertError

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
except ImportError as error:
    raise ConvertError("tqn report draws with matplotlib: pip install 'turboquant-native[report]'") from error

_LIGHT = {"text": "#222222", "grid": "#d8d8d8", "low": "#eef4fa", "high": "#1b5f96"}
_DARK = {"text": "#dddddd", "grid": "#444444", "low": "#22303c", "high": "#7fc0f5"}
COLORS = ("#3b8bc9", "#e0704f", "#4ba35a", "#a97cc0", "#c79a2b", "#8a8a8a", "#e07fb7", "#2fb3a3")  # readable on white and on black
MARKERS = "osD^vPX*"
_INCHES = (8.4, 3.9)


@dataclass(frozen=True)
class Series:
    """Points of one name; `line` joins them; labels: one for each point, or none."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    labels: Sequence[str] = ()


def picture(draw: Callable[[], Figure], description: str) -> str:
    """An HTML <picture> that needs nothing else, for light and dark pages. `draw` is called once for each."""
    with _theme(_LIGHT):
        light = _data_address(draw())
    with _theme(_DARK):
        dark = _data_address(draw())
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{source}<img src="{light}" alt="{escape(description)}"></picture>'


@contextmanager
def _theme(colors: Mapping[str, str]) -> Iterator[None]:
    """Matplotlib's settings while a picture is drawn and saved."""
    ink: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), colors["text"])
    plain: dict[Any, Any] = {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False}
    lines: dict[Any, Any] = {
        "axes.grid": True,
        "grid.color": colors["grid"],
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context({**ink, **plain, **lines, "image.cmap": "viridis", "font.size": 10, "svg.fonttype": "path"}):
        yield


def _shades() -> LinearSegmentedColormap:
    """From little to much, for the theme that is on."""
    from matplotlib import rcParams

    colors = _DARK if rcParams["text.color"] == _DARK["text"] else _LIGHT
    return LinearSegmentedColormap.from_list("shades", [colors["low"], colors["high"]])


def _data_address(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def curves(series: Sequence[Series], x_title: str, y_title: str, log: bool = False, whole_x: bool = False) -> Figure:
    """Points and lines of several series, their names beside the axes; `log`: the vertical axis is logarithmic; whole_x: ticks at whole
    numbers only."""
    figure, axes = _axes(_INCHES, x_title, y_title)
    for number, one in enumerate(series):
        x, y = zip(*one.points, strict=True)
        style: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        axes.plot(x, y, linestyle="-" if one.line else "none", linewidth=1.4, label=one.name, **style)
        for point, label in zip(one.points, one.labels, strict=False):
            axes.annotate(label, point, xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.margins(x=0.08, y=0.12)
    if log:
        axes.set_yscale("log")
        _label_many_ticks(axes)
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=3))
    if any(label for one in series for label in one.labels):
        axes.set_xlim(right=axes.get_xlim()[1] + 0.18 * (axes.get_xlim()[1] - axes.get_xlim()[0]))  # for labels of the last points
    figure.legend(loc="outside right upper")
    return figure


def _label_many_ticks(axes: Axes) -> None:
    """A logarithmic axis within one decade would have a single label: 1, 2, 3, 5 and 7 of every decade have theirs, as plain numbers."""
    low, high = axes.get_ylim()
    within = np.log10(high / low) < 2
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if within else (1, 2, 5), numticks=20))
    numbers = ScalarFormatter()
    numbers.set_scientific(False)
    axes.yaxis.set_major_formatter(numbers)
    axes.yaxis.set_minor_formatter(NullFormatter())


def grid(rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float], high: float, form: str = "{:g}") -> Figure:
    """Cells shaded from 0 to `high`, with their values; missing cells stay empty."""
    table = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows])
    figure, axes = _axes((max(_INCHES[0], 1.6 + 0.32 * len(columns)), 0.9 + 0.3 * len(rows)), "layer", "")
    axes.grid(False)
    shades = _shades()
    axes.imshow(table, aspect="auto", vmin=0, vmax=high or 1, cmap=shades)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = shades(min(value / (high or 1), 1.0))
            ink = "#111111" if np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.5 else "#f5f5f5"
            axes.text(j, i, form.format(value), ha="center", va="center", fontsize=7, color=ink)
    return figure


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float64], x_title: str, y_title: str) -> Figure:
    """Bars between `edges` (one more than counts)."""
    figure, axes = _axes(_INCHES, x_title, y_title)
    axes.stairs(counts, edges, fill=True, color=COLORS[0])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=3))
    return figure


def _axes(inches: tuple[float, float], x_title: str, y_title: str) -> tuple[Figure, Axes]:
    """Laid out so that no label is cut off."""
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    return figure, axes

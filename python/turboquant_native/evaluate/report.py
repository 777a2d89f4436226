"""`tqn report`: pictures of quantized files in one HTML page that needs nothing else.

Widths, outliers, scales and the measured loss are read from the files; errors of single matrices from `FILE.quant.json`, which a
calibrated conversion writes beside its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .._core import GgufFile
from ..convert.inspection import describe, measured_kld
from . import charts
from .charts import Figure

_STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
picture img{max-width:100%;height:auto}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #8886}td:first-child,th:first-child{text-align:left}
figure{margin:1em 0;overflow-x:auto}figcaption{color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}figcaption{color:#aaa}}"""
_KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Point:
    """A file of another program: its name, bits per weight and KL divergence."""

    name: str
    bpw: float
    kld: float


class Quantized:
    """One file and what was measured while it was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GgufFile(path)
        self.entries = self.file.quantized()
        self.summary = describe(self.file)
        measured = path.with_name(f"{path.name}.quant.json")
        self.measured: dict[str, Any] = json.loads(measured.read_text()) if measured.exists() else {}

    @property
    def kld(self) -> float | None:
        return measured_kld(self.file)

    def by_place(self, value: str) -> dict[tuple[str, str], float]:
        """(kind, layer) -> "bits", "outliers" (per thousand weights) or "relative_error" (per cent); experts are averaged."""
        found: dict[tuple[str, str], list[float]] = {}
        for name, entry in self.entries.items():
            place = re.match(r"blk\.(\d+)\.(\w+?)(?:\.\d+)?\.weight$", name)
            if place is None:
                continue
            if value == "outliers":
                number = 1000 * entry["outliers"] / (entry["n_out"] * entry["n_in"])
            elif value == "bits":
                number = entry["bits"]
            else:
                number = 100 * (self.measured.get("tensors", {}).get(name, {}).get("relative_error") or 0.0)
            found.setdefault((place[2], place[1]), []).append(number)
        return {key: float(np.mean(numbers)) for key, numbers in found.items()}

    def scales(self) -> np.ndarray:
        """log2 of what one integer of a code stands for, over all rows of all matrices."""
        rows = [
            entry["scale"] * self.file.data(f"{name}.tqn_scale")[: entry["n_out"]].astype(np.float64)
            for name, entry in self.entries.items()
        ]
        every = np.concatenate(rows) if rows else np.empty(0)
        return np.log2(every[every > 0])


def page(files: Sequence[Quantized], points: Sequence[Point] = ()) -> str:
    """The whole page."""
    body = ["<h1>Quantized files</h1>", _table(files), _loss_against_size(files, points), *map(_section, files)]
    title = escape(", ".join(file.path.name for file in files))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f'<!doctype html><html lang="en">{head}<title>{title}</title><style>{_STYLE}</style>{"".join(body)}</html>\n'


def _figure(draw: Callable[[], Figure], caption: str) -> str:
    return f"<figure>{charts.picture(draw, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(files: Sequence[Quantized]) -> str:
    rows = ["<tr><th>file</th><th>MB</th><th>bits per weight</th><th>KL divergence</th><th>outliers</th></tr>"]
    for file in files:
        kld = "not measured" if file.kld is None else f"{file.kld:.4f}"
        outliers = sum(entry["outliers"] for entry in file.entries.values())
        cells = (escape(file.path.name), f"{file.file.size / 1e6:.2f}", f"{file.summary.bits_per_weight:.3f}", kld, f"{outliers:,}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _loss_against_size(files: Sequence[Quantized], points: Sequence[Point]) -> str:
    mine = sorted((file.summary.bits_per_weight, file.kld, file.path.stem) for file in files if file.kld)
    series = [charts.Series("these files", [p[:2] for p in mine], True, [p[2] for p in mine])] if mine else []
    if points:
        others = sorted((point.bpw, point.kld, point.name) for point in points)
        series.append(charts.Series("others", [p[:2] for p in others], False, [p[2] for p in others]))
    if not series:
        return "<p>No file has a measured KL divergence: convert with calibration, or give points.</p>"
    caption = "Loss against size: nats a token, of the next-token distribution from the original's (other points: as given)."
    return _figure(lambda: charts.curves(series, "bits per weight, whole file", "KL divergence", log=True), caption)


def _section(file: Quantized) -> str:
    parts = [f"<h2>{escape(file.path.name)}</h2>"]
    bits, outliers = file.by_place("bits"), file.by_place("outliers")
    layers = sorted({layer for _, layer in bits}, key=int)
    found = {kind for kind, _ in bits}
    kinds = [kind for kind in _KINDS if kind in found] + sorted(found - set(_KINDS))
    ends = [f"{name}: {file.entries[name]['bits']} bits" for name in ("token_embd.weight", "output.weight") if name in file.entries]
    if layers:
        parts.append(_figure(lambda: charts.grid(kinds, layers, bits, 8), "Bits per matrix over depth. " + ", ".join(ends)))
    if file.measured.get("tensors"):
        parts.append(_errors(file, kinds, layers))
    if curve := file.measured.get("tuning", {}).get("curve"):
        parts.append(_tuning(curve))
    if any(outliers.values()):
        draw = partial(charts.grid, kinds, layers, outliers, max(outliers.values()), "{:.1f}")
        parts.append(_figure(draw, "FP16 outliers, per thousand weights."))
    else:
        parts.append("<p>No outliers.</p>")
    if (scales := file.scales()).size:
        counts, edges = np.histogram(scales, bins=60)
        draw = partial(charts.histogram, counts, edges, "log2 of a row's scale", "rows")
        parts.append(_figure(draw, "Row scales of all matrices."))
    return "".join(parts)


def _tuning(curve: Sequence[tuple[int, float]]) -> str:
    line = charts.Series("held-out text", [(tokens / 1e6, kld) for tokens, kld in curve], True)
    caption = "KL divergence from the teacher while the file was tuned, nats a token."
    return _figure(lambda: charts.curves([line], "million tokens", "KL divergence"), caption)


def _errors(file: Quantized, kinds: Sequence[str], layers: Sequence[str]) -> str:
    errors = file.by_place("relative_error")
    lines = [
        charts.Series(kind, [(int(layer), errors[kind, layer]) for layer in layers if (kind, layer) in errors], True) for kind in kinds
    ]
    draw = partial(charts.curves, [line for line in lines if line.points], "layer", "error, %", whole_x=True)
    return _figure(draw, "Error at each matrix's output on the calibration text, per cent of its energy, by layer.")

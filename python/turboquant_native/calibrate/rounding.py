"""Rounding a model layer by layer on the activations of its already rounded part.

Every matrix is asked to give, on the inputs it will really see, what the original gives on the original's inputs:

    minimise over W':  E || W x - W' x' ||^2        x: the original's input, x': the input behind the rounded layers

Solved in closed form this moves the target from W to W + (W (C - H) + B) (H + damping)^-1 with H = E[x' x'^T], C = E[x x'^T], and for the
matrices that write to the residual stream B = E[r x'^T], r being the stream's error so far, which they are asked to repair. Half of both
corrections is applied (docs/research/quality.md: the whole of them fits noise). The target is rounded with error feedback under H, in
which tokens may have weights. In the corrections all tokens count alike: with weights, few tokens would dominate and more noise be fitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..common.progress import Stopwatch
from ..convert.feedback import times_definite_inverse
from ..convert.quantize import ErrorFeedback, MatrixSpec, QuantizedMatrix, quantize_matrix
from ..convert.sources import Source

Floats = NDArray[np.float32]
_HEAD_ROWS = 64  # of one pass of LayerRunner.head
_BATCH_ROWS = 4096  # rows whose products are summed by one matrix multiplication
STREAM = "/residual"  # behind a site's name: the residual stream that the site reads through a norm
ERROR_ROWS = 128  # of a matrix, from which its relative error is reported
_BLOCK = 1024  # rows and columns of a part of a Hessian


@dataclass(frozen=True)
class Settings:
    """How a model is calibrated.

    Attributes:
        windows, seq_len: the calibration text.
        damping: of error feedback, as a fraction of the Hessian's mean diagonal.
        cross: part of the correction for changed inputs, 0 to 1.
        residual: part of the residual stream's error that attention and feed-forward outputs repair, 0 to 1.
        correction_damping: of both corrections.
        gradient_power: of the squared gradients that weight tokens, where there are any.
        seed: of the sampled text.
    """

    windows: int = 64
    seq_len: int = 512
    damping: float = 0.03
    cross: float = 0.5
    residual: float = 0.5
    correction_damping: float = 0.2
    gradient_power: float = 0.25
    seed: int = 0


class SiteStatistics:
    """Means over tokens at one input site: H = E[x' x'^T]; where the original's rows x are given, C = E[x x'^T]; where d is given, what the
    matrix should add to its outputs, B = E[d x'^T]; where token weights w are given, E[w x' x'^T]."""

    def __init__(self) -> None:
        self.rows = 0
        self._waiting = 0  # rows whose products are not in the sums yet
        self._rows: dict[str, Floats] = {}
        self._sums: dict[str, Floats] = {}
        self._means: dict[str, Floats] = {}  # in the sums' place: a wide layer's take a gigabyte
        self._feedback: tuple[tuple[int | None, float], ErrorFeedback] | None = None  # of the last seed and damping
        self._change: Floats | None = None  # (C - H) (H + damping)^-1

    def add(self, x: Floats, reference: Floats | None = None, lacking: Floats | None = None, weight: Floats | None = None) -> None:
        """Rows x (n, width), the original's rows, what the matrix is asked to add to its outputs (n, n_out), and how much each row counts
        for error feedback (n,). All are copied. Not after a mean was asked for."""
        assert not self._means
        weighted = None if weight is None else weight[:, None] * x
        for first in range(0, len(x), _BATCH_ROWS):
            part = slice(first, first + _BATCH_ROWS)
            if self._waiting + len(x[part]) > _BATCH_ROWS:
                self._multiply()
            for name, rows in (("h", x), ("c", reference), ("b", lacking), ("w", weighted)):
                if rows is not None:
                    waiting = self._rows.setdefault(name, np.empty((_BATCH_ROWS, rows.shape[1]), np.float32))
                    waiting[self._waiting : self._waiting + len(x[part])] = rows[part]
            self._waiting += len(x[part])
        self.rows += len(x)

    def _multiply(self) -> None:
        """Adds the products of the rows that wait: few large ones, for the sake of speed."""
        x = self._rows["h"][: self._waiting] if self._waiting else None
        for name, left in self._rows.items() if x is not None else ():
            product = left[: self._waiting].T @ x
            self._sums[name] = np.add(self._sums[name], product, out=product) if name in self._sums else product
        self._waiting = 0

    def check(self, site: str) -> None:
        """ConvertError where an activation was NaN or infinite."""
        self._multiply()
        if not all(np.isfinite(total).all() for total in self._sums.values()):
            raise ConvertError(f"{site}: the model's activations are not finite on the calibration text")

    def _mean(self, name: str) -> Floats | None:
        self._multiply()
        if name in self._sums:
            total = self._sums.pop(name)
            self._means[name] = np.divide(total, np.float32(max(self.rows, 1)), out=total)
            if name in ("h", "w"):
                _make_symmetric(total)
        return self._means.get(name)

    @property
    def hessian(self) -> Floats | None:
        """(width, width), symmetric; None where no row came by or all were zero."""
        h = self._mean("h")
        return h if h is not None and h.any() else None

    @property
    def weighted_hessian(self) -> Floats | None:
        """The same with the tokens' weights; the Hessian itself where there are none."""
        h = self._mean("w")
        return h if h is not None and h.any() else self.hessian

    def error_feedback(self, spec: MatrixSpec, threads: int) -> ErrorFeedback | None:
        """For matrices of this spec; factored once for those that follow each other with one seed and damping."""
        h, key = self.weighted_hessian, (spec.seed, spec.damping)
        if h is None:
            return None
        if self._feedback is None or self._feedback[0] != key:
            self._feedback = (key, ErrorFeedback.of(h, spec, threads))
        return self._feedback[1]

    def target(self, w: Floats, settings: Settings) -> Floats:
        """What to round in place of w (n_out, width); the settings must be those of the first call."""
        h, b = self.hessian, self._mean("b")
        if h is None:
            return w
        target = w
        if b is not None:
            target = target + _damped_solution(b, h, settings.correction_damping)
        if settings.cross and (c := self._mean("c")) is not None:
            if self._change is None:  # one solution for all matrices of the site
                self._change = _damped_solution(c - h, h, settings.correction_damping)
            target = target + np.float32(settings.cross) * (w @ self._change)
        return np.ascontiguousarray(target, dtype=np.float32)


def _damped_solution(x: Floats, h: Floats, damping: float) -> Floats:
    """x (H + damping * mean(diag H))^-1; h is changed meanwhile."""
    diagonal = np.diag(h).copy()
    h.flat[:: len(h) + 1] += np.float32(damping * np.trace(h) / len(h))
    try:
        return times_definite_inverse(x, h)
    finally:
        h.flat[:: len(h) + 1] = diagonal


def _make_symmetric(h: Floats) -> None:
    """h becomes (h + h^T) / 2, in its place."""
    for first in range(0, len(h), _BLOCK):
        for second in range(first, len(h), _BLOCK):
            rows, columns = slice(first, first + _BLOCK), slice(second, second + _BLOCK)
            h[rows, columns] = (h[rows, columns] + h[columns, rows].T) / 2
            h[columns, rows] = h[rows, columns].T


def layer_of(name: str) -> int | None:
    """3 of "blk.3.attn_q.weight"; None for tensors outside the layers."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


class LayerSites:
    """The input sites of a layer (`_core.InputSite`), as the engine's graph has them."""

    def __init__(self, runner: _core.LayerRunner, layer: int) -> None:
        self._sites = {site.name: site for site in runner.input_sites(layer)}
        self._readers = {matrix: site for site in self._sites.values() for matrix in site.matrices}

    @property
    def groups(self) -> list[str]:
        """Sites that are seen together, in the order of the computation: all experts' gates are one group."""
        return list(dict.fromkeys(site.group for site in self._sites.values()))

    def group(self, site: str) -> str:
        """The group of what a tap was shown; empty for the residual stream."""
        return self._sites[site].group if site in self._sites else ""

    def readers(self, group: str, matrices: list[str]) -> list[str]:
        """Those of the matrices that read a site of the group."""
        return [matrix for matrix in matrices if matrix in self._readers and self._readers[matrix].group == group]

    def site(self, matrix: str) -> str:
        """The site that a matrix reads; empty for one that is not in the layer's graph."""
        return self._readers[matrix].name if matrix in self._readers else ""

    def writes_to(self, matrix: str) -> tuple[str, bool]:
        """The site that shows the residual stream which a matrix adds to (else empty), and whether it adds directly."""
        site = self._readers[matrix]
        return site.writes_to, site.adds_directly

    def is_shared(self, site: str) -> bool:
        """Whether every token passes a site, unlike an expert's."""
        return self.group(site) == site


class _ReferenceLayer:
    """One layer of the original: its output and what its sites saw, kept in `buffers`, which the next layer uses again."""

    def __init__(self, runner: Any, index: int, hidden: Floats, sites: LayerSites, buffers: dict[str, Floats]) -> None:
        self._sites = sites
        self._tokens, self._buffers = hidden.shape[0] * hidden.shape[1], buffers
        self._seen: dict[str, int] = {}  # rows
        self.output: Floats = runner.layer(index, hidden, self._tap)

    def _tap(self, site: str, x: Floats) -> None:
        # Experts see other rows behind rounded layers, so theirs are of no use.
        if site.endswith(STREAM) or self._sites.is_shared(site):
            first = self._seen.get(site, 0)
            self._buffer(site, x.shape[1])[first : first + len(x)] = x
            self._seen[site] = first + len(x)

    def _buffer(self, site: str, width: int) -> Floats:
        name = re.sub(r"^blk\.\d+\.", "", site)
        if name not in self._buffers or self._buffers[name].shape[1] != width:
            self._buffers[name] = np.empty((self._tokens, width), np.float32)
        return self._buffers[name]

    def rows(self, site: str, rows: slice) -> Floats | None:
        """What a site saw of these tokens, all windows one after the other."""
        return self._buffers[re.sub(r"^blk\.\d+\.", "", site)][rows] if site in self._seen else None


class SequentialRounder:
    """Rounds a model's matrices in the order of the computation; call it as a conversion's rounder, with the plan in that order.

    After each layer the hidden states of original and rounded model are kept in `folder`, before the layer's first matrix is handed out:
    a run that was killed goes on at the layer it was in, with the same result.

    Args:
        source: the model.
        model: its unquantized file, opened with precision "f32".
        tokens: (windows, seq_len).
        specs: name -> spec of every matrix that will be rounded.
        folder: for the states.
        output_hessian: (n_embd, n_embd) of the output matrix's input in the original; needed where it is tied to the embedding.
        frequency: (n_vocab,) mean probability of each token: how much the rows of the output matrix count.
        threads: 0: all cores.
        weights: site -> (windows * seq_len,) how much each token counts there in error feedback; sites not named weight all alike.
    """

    def __init__(
        self,
        source: Source,
        model: Any,
        tokens: NDArray[np.int32],
        settings: Settings,
        specs: dict[str, MatrixSpec],
        folder: Path,
        output_hessian: Floats | None = None,
        frequency: Floats | None = None,
        threads: int = 0,
        weights: Mapping[str, Floats] | None = None,
    ) -> None:
        self._source, self._tokens, self._specs, self._folder = source, tokens, specs, folder
        self._weights = weights or {}
        self._hessian, self._frequency, self._threads = output_hessian, frequency, threads
        self._settings = settings
        self._original = _core.LayerRunner(model, tokens.shape[1])
        self._rounded = _core.LayerRunner(model, tokens.shape[1])
        self._n_layers = int(model.config["n_layers"])
        self._next = 0  # the layer that the hidden states stand before
        self._hidden: tuple[Floats, Floats] | None = None  # original, rounded
        self._buffers: dict[str, Floats] = {}  # for what the original's sites see
        self._results: dict[str, QuantizedMatrix] = {}
        self.watch = Stopwatch()
        self.errors: dict[str, float] = {}  # name -> E|| (W - W') x ||^2 / E|| W x ||^2

    def __call__(self, name: str, w: Floats, spec: MatrixSpec, progress: Callable[[int], None]) -> QuantizedMatrix:
        if name == "token_embd.weight":
            return self._embedding(w, spec, progress)
        layer = layer_of(name)
        if layer is None:
            return self._output(w, progress)
        if name not in self._results:
            self._advance_to(layer)
            self._results = self._round_layer(layer, progress)
        return self._results.pop(name)

    # --- embedding and output

    def _embedding(self, w: Floats, spec: MatrixSpec, progress: Callable[[int], None]) -> QuantizedMatrix:
        """If tied to the output, rounded for that use: there a row's error can change every prediction, here only its own token's."""
        hessian = self._hessian if self._source.tied else None
        with self.watch("encoding"):
            frequency = None if hessian is None else self._frequency
            spec = replace(spec, damping=self._settings.damping)
            result = quantize_matrix(w, spec, hessian, row_weight=frequency, threads=self._threads, progress=progress)
        rounded = result.dequantize(self._threads)
        if hessian is not None:
            self.errors["token_embd.weight"] = relative_error(w, rounded, hessian)
        original = self._original.embed(self._tokens)
        self._rounded.set_matrix("token_embd.weight", rounded)
        self._keep(0, original, self._rounded.embed(self._tokens))
        self._rounded.set_matrix("token_embd.weight", None)
        return result

    def _output(self, w: Floats, progress: Callable[[int], None]) -> QuantizedMatrix:
        self._advance_to(self._n_layers)
        assert self._hidden is not None
        statistics = SiteStatistics()
        for original, rounded in zip(*self._hidden, strict=True):
            statistics.add(output_input(self._rounded, rounded), output_input(self._original, original))
        return self._round("output.weight", w, statistics, progress)

    # --- layers

    def _advance_to(self, layer: int) -> None:
        """The hidden states before `layer`: at hand, kept by an earlier run, or the embedding's."""
        if self._hidden is not None and self._next == layer:
            return
        if (states := self._load(layer)) is not None:
            self._next, self._hidden = layer, states
            return
        if layer != 0:
            raise ConvertError(f"{self._folder}: the states before layer {layer} are missing; start again without --resume")
        hidden = self._original.embed(self._tokens)
        self._next, self._hidden = 0, (hidden, hidden.copy())

    def _round_layer(self, layer: int, progress: Callable[[int], None]) -> dict[str, QuantizedMatrix]:
        """Site after site: the windows go on to it, and its matrices are rounded on what they bring."""
        assert self._hidden is not None
        original, rounded = self._hidden
        with self.watch("original's passes"):
            sites = LayerSites(self._original, layer)
            reference = _ReferenceLayer(self._original, layer, original, sites, self._buffers)
        windows = self._rounded.enter(layer, rounded)
        names = [name for name in self._specs if layer_of(name) == layer]
        results: dict[str, QuantizedMatrix] = {}
        for group in sites.groups:
            mine = sites.readers(group, names)
            if not mine:
                continue
            statistics = self._statistics(sites, group, mine, windows, reference)
            for site, readers in groupby(sorted(mine, key=sites.site), sites.site):
                found = statistics.pop(site, SiteStatistics())  # with its factors it goes before the next expert's come
                for name in readers:
                    results[name] = self._round(name, self._source.read(name), found, progress)
        for name in names:  # matrices that no token reached
            if name not in results:
                results[name] = self._round(name, self._source.read(name), SiteStatistics(), progress)
        with self.watch("passes"):
            windows.run()
        with self.watch("states"):
            self._keep(layer + 1, reference.output, windows.hidden)
        for name in names:
            self._rounded.set_matrix(name, None)
        return results

    def _statistics(
        self, sites: LayerSites, group: str, names: list[str], windows: Any, reference: _ReferenceLayer
    ) -> dict[str, SiteStatistics]:
        """Of every site of a group, which the matrices named read; the windows stop there."""
        statistics: dict[str, SiteStatistics] = {}
        written, directly = sites.writes_to(names[0])
        writes = self._source.read(names[0]) if written else None
        repair = self._settings.residual if directly else 0.0
        stream_site = written + STREAM
        stream: Floats | None = None

        def tap(site: str, x: Floats) -> bool:
            nonlocal stream
            if site == stream_site:
                stream = x.copy()
            if sites.group(site) != group:
                return False
            found = statistics.setdefault(site, SiteStatistics())
            rows = slice(found.rows, found.rows + len(x))
            wanted = reference.rows(site, rows)
            weight = self._weights[site][rows] if site in self._weights else None
            with self.watch("products"):
                if writes is None or wanted is None:
                    found.add(x, wanted, weight=weight)
                else:
                    before = reference.rows(stream_site, rows)
                    error = None if before is None or stream is None else before - stream
                    found.add(x, None, self._lacking(writes, wanted - x, error, repair), weight)
            return True

        with self.watch("passes"):
            windows.run(tap)
        for site, found in statistics.items():
            found.check(site)
        return statistics

    def _lacking(self, w: Floats, change: Floats, error: Floats | None, repair: float) -> Floats:
        """What a matrix that writes to the residual stream is asked to add: for its changed inputs, and for the stream's error so far."""
        lacking: Floats = np.float32(self._settings.cross) * (change @ w.T)
        return lacking if error is None else lacking + np.float32(repair) * error

    def _round(self, name: str, w: Floats, statistics: SiteStatistics, progress: Callable[[int], None]) -> QuantizedMatrix:
        """The matrix rounded on these statistics; what follows is run with it."""
        with self.watch("targets"):
            hessian = statistics.weighted_hessian
            target = statistics.target(w, self._settings)
        with self.watch("encoding"):
            spec = replace(self._specs[name], damping=self._settings.damping)
            weight = self._frequency if name == "output.weight" else None
            feedback = statistics.error_feedback(spec, self._threads)
            options: dict[str, Any] = {"row_weight": weight, "threads": self._threads, "progress": lambda done: progress(0)}
            result = quantize_matrix(target, spec, hessian, feedback=feedback, **options)
        rounded = result.dequantize(self._threads)
        if hessian is not None:
            self.errors[name] = relative_error(target, rounded, hessian)
        self._rounded.set_matrix(name, rounded)
        return result

    # --- states between layers

    def _path(self, layer: int) -> Path:
        return self._folder / f"hidden_{layer}"

    def _keep(self, layer: int, original: Floats, rounded: Floats) -> None:
        if not np.isfinite(rounded).all():
            raise ConvertError(f"layer {layer - 1}: the rounded model's hidden states are not finite")
        keep_arrays(self._path(layer), original, rounded, np.array(list(self.errors)), np.array(list(self.errors.values())))
        if layer >= 2:
            self._path(layer - 2).unlink(missing_ok=True)
        self._next, self._hidden = layer, (original, rounded)

    def _load(self, layer: int) -> tuple[Floats, Floats] | None:
        if not self._path(layer).exists():
            return None
        original, rounded, names, errors = load_arrays(self._path(layer))
        self.errors.update(zip(names.tolist(), errors.tolist(), strict=True))
        return original, rounded


def keep_arrays(path: Path, *arrays: NDArray[Any]) -> None:
    """One file of arrays, complete or not there."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as stream:
        for array in arrays:
            np.save(stream, array)
    partial.replace(path)


def load_arrays(path: Path) -> list[NDArray[Any]]:
    """What keep_arrays wrote."""
    size, arrays = path.stat().st_size, []
    with open(path, "rb") as stream:
        while stream.tell() < size:
            arrays.append(np.load(stream))
    return arrays


def output_input(runner: Any, hidden: Floats) -> Floats:
    """What the output matrix sees of hidden states (n, n_embd); its product, the logits, is not computed."""
    seen: list[Floats] = []

    def tap(site: str, x: Floats) -> bool:
        seen.append(x.copy())
        return True

    for first in range(0, len(hidden), _HEAD_ROWS):
        runner.head(hidden[first : first + _HEAD_ROWS], tap)
    return np.concatenate(seen)


def relative_error(w: Floats, rounded: Floats, hessian: Floats) -> float:
    """E|| (W - W') x ||^2 / E|| W x ||^2, of some rows evenly spaced: enough to report it."""
    few = slice(None, None, -(-len(w) // ERROR_ROWS))
    w, rounded = w[few], rounded[few]
    difference = w - rounded
    energy = float(np.vdot(w @ hessian, w))
    return float(np.vdot(difference @ hessian, difference)) / energy if energy > 0 else 0.0

"""What rounding each matrix costs the model, in KL divergence of its next-token distribution.

Nothing is rounded for it: the error that error feedback leaves is known in distribution, E = noise (I + U)^-1 with white noise of the
format's distortion. Every layer as a whole is measured on the model, from that layer to the logits; within a layer the cost is shared
out by the error that each matrix alone causes at the layer's output, which takes one layer's work. Against measuring every matrix to
the logits this estimate has a log correlation of .97 (docs/quality.md), for a tenth of the work.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..convert.quantize import rotate_hessian, rotation_seed
from ..convert.sources import Source
from ..evaluate.evaluation import divergence, normalize
from .rounding import STREAM, Floats, LayerSites, SiteStatistics, keep_arrays, layer_of, load_arrays, output_input

# Mean squared error of a width on N(0, 1) (docs/format.md); 8 bits: a uniform step of max / 127, max being 3.2 deviations.
DISTORTION = {1: 0.27647, 2: 0.07024, 3: 0.01841, 4: 0.00543, 6: 0.00068, 8: 5.7e-5}
NOISE_BITS = 2  # the width whose error is imitated
_DAMPING = 0.03
_BLOCK_ROWS = 64  # of logits at a time


@dataclass
class Sensitivity:
    """KL divergence (nats a token) that each matrix costs alone at NOISE_BITS; by layer, all its matrices together; and what the
    output matrix sees: (n_embd, n_embd) E[x x^T]."""

    matrices: dict[str, float] = field(default_factory=dict)
    layers: dict[int, float] = field(default_factory=dict)
    output_hessian: Floats | None = None

    def at(self, name: str, bits: int) -> float:
        """The estimate for another width: the divergence grows with the square of the error."""
        return self.matrices[name] * DISTORTION[bits] / DISTORTION[NOISE_BITS]


class SensitivityMeter:
    """Measures one model.

    Args:
        source: the model.
        model: its unquantized file, opened with precision "f32".
        tokens: (windows, seq_len) for the Hessians.
        probes: (windows, seq_len) on which the divergence is measured; the last three quarters of each window count.
    """

    def __init__(self, source: Source, model: Any, tokens: NDArray[np.int32], probes: NDArray[np.int32], seed: int = 0) -> None:
        self._source, self._tokens, self._probes, self._seed = source, tokens, probes, seed
        self._runner = _core.LayerRunner(model, tokens.shape[1])
        self._probe = _core.LayerRunner(model, probes.shape[1])
        self._n_layers = int(model.config["n_layers"])

    def measure(self, names: list[str], kept: Path, progress: Callable[[int], None] = lambda layers: None) -> Sensitivity:
        """Of the matrices named. After each layer everything found so far is kept in the file `kept`: a killed run goes on from there."""
        found, first = Sensitivity(), 0
        hidden, probe = self._runner.embed(self._tokens), self._probe.embed(self._probes)
        reference = self._logprobs(probe, 0)
        if kept.exists():
            hidden, probe, state = load_arrays(kept)
            first, layers, found.matrices = json.loads(bytes(state))
            found.layers = {int(layer): cost for layer, cost in layers.items()}
        for layer in range(first, self._n_layers):
            mine = [name for name in names if layer_of(name) == layer]
            if mine:
                hidden, hessians = self._hessians(layer, hidden)
                probe = self._measure_layer(layer, mine, hessians, probe, reference, found)
            else:
                hidden, probe = self._runner.layer(layer, hidden), self._probe.layer(layer, probe)
            now = json.dumps([layer + 1, found.layers, found.matrices]).encode()
            keep_arrays(kept, hidden, probe, np.frombuffer(now, np.uint8))
            progress(layer + 1)
        self._measure_ends(names, hidden, probe, reference, found)
        return found

    def _hessians(self, layer: int, hidden: Floats) -> tuple[Floats, dict[str, SiteStatistics]]:
        sites: dict[str, SiteStatistics] = {}

        def tap(site: str, x: Floats) -> None:
            if not site.endswith(STREAM):
                sites.setdefault(site, SiteStatistics()).add(x)

        after = self._runner.layer(layer, hidden, tap)
        for site, statistics in sites.items():
            statistics.check(site)
        return after, sites

    def _measure_layer(
        self,
        layer: int,
        names: list[str],
        hessians: dict[str, SiteStatistics],
        probe: Floats,
        reference: Floats,
        found: Sensitivity,
    ) -> Floats:
        """Adds a layer's costs to `found`; returns the probes' states behind the unchanged layer."""
        after = self._probe.layer(layer, probe)
        sites = LayerSites(self._runner, layer)
        noisy = {name: self._noisy(name, hessians.get(sites.site(name), SiteStatistics()).hessian) for name in names}
        shares = {name: _relative_change(after, self._changed(layer, {name: w}, probe)) for name, w in noisy.items()}
        cost = self._divergence(reference, self._changed(layer, noisy, probe), layer + 1)
        total = sum(shares.values()) or 1.0
        found.layers[layer] = cost
        found.matrices |= {name: cost * share / total for name, share in shares.items()}
        return after

    def _changed(self, layer: int, matrices: dict[str, Floats], probe: Floats) -> Floats:
        """The probes behind a layer with other matrices."""
        for name, w in matrices.items():
            self._probe.set_matrix(name, w)
        changed: Floats = self._probe.layer(layer, probe)
        for name in matrices:
            self._probe.set_matrix(name, None)
        return changed

    def _measure_ends(self, names: list[str], hidden: Floats, probe: Floats, reference: Floats, found: Sensitivity) -> None:
        """Embedding and output: one matrix in both places, or two."""
        statistics = SiteStatistics()
        rows = hidden.reshape(-1, hidden.shape[-1])
        statistics.add(output_input(self._runner, rows))
        statistics.check("output")
        found.output_hessian = statistics.hessian
        for name in ("token_embd.weight", "output.weight"):
            if name not in names:
                continue
            read_last = name == "output.weight"
            self._probe.set_matrix(name, self._noisy(name, found.output_hessian if read_last or self._source.tied else None))
            changed, layer = (probe, self._n_layers) if read_last else (self._probe.embed(self._probes), 0)
            found.matrices[name] = self._divergence(reference, changed, layer)
            self._probe.set_matrix(name, None)

    def _noisy(self, name: str, hessian: Floats | None) -> Floats:
        """The matrix with an error such as rounding to NOISE_BITS with error feedback leaves."""
        w = self._source.read(name)
        deviation = np.sqrt(DISTORTION[NOISE_BITS] * np.mean(np.square(w), axis=1, keepdims=True, dtype=np.float64))
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        noise = (rng.standard_normal(w.shape, dtype=np.float32) * deviation).astype(np.float32)
        if hessian is None:
            return w + noise
        seed = rotation_seed(name, self._seed)
        u = _core.feedback(rotate_hessian(hessian, seed), _DAMPING)
        u.flat[:: len(u) + 1] += 1
        noise = np.ascontiguousarray(np.linalg.solve(u.T, noise.T).T, dtype=np.float32)
        return w + _core.rotate_rows(noise, seed, inverse=True)

    def _scored(self, hidden: Floats, layer: int) -> Floats:
        """(rows, n_embd) behind the layers from `layer` on, of the last three quarters of each window."""
        for index in range(layer, self._n_layers):
            hidden = self._probe.layer(index, hidden)
        return np.ascontiguousarray(hidden[:, hidden.shape[1] // 4 :].reshape(-1, hidden.shape[-1]))

    def _logprobs(self, hidden: Floats, layer: int) -> Floats:
        """(rows, n_vocab) of the scored rows."""
        return normalize(self._probe.head(self._scored(hidden, layer)))

    def _divergence(self, reference: Floats, hidden: Floats, layer: int) -> float:
        """From the reference's log-probabilities, of changed states before `layer`."""
        rows = self._scored(hidden, layer)
        blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, len(rows), _BLOCK_ROWS)]
        return float(np.concatenate([divergence(reference[block], normalize(self._probe.head(rows[block]))) for block in blocks]).mean())


def _relative_change(states: Floats, changed: Floats) -> float:
    """Mean over tokens of the squared change over the squared state."""
    error, energy = np.square(changed - states).mean(axis=-1), np.square(states).mean(axis=-1)
    return float((error / np.maximum(energy, np.finfo(np.float32).tiny)).mean())

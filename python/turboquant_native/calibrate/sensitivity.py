"""What rounding each matrix costs the model, in KL divergence of its next-token distribution.

Nothing is rounded for it: the error that error feedback leaves is known in distribution, E = noise (I + U)^-1 with white noise of the
format's distortion. Every layer as a whole is measured on the model, from that layer to the logits; within a layer the cost is shared out
by the error that each matrix alone causes at the layer's output, which takes one layer's work. Against measuring every matrix to the
logits this estimate has a log correlation of .97 (docs/research/quality.md), for a tenth of the work. To be faster still, several adjacent
layers are measured together and share their cost by the same rule. Where only embedding and output are to be decided, one pass with noise
in all layers says what those cost together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..convert.feedback import times_inverse, upper_factor
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
    """KL divergence (nats a token) that rounding costs.

    Attributes:
        matrices: name -> of the matrix alone at NOISE_BITS.
        layers: layer -> of all its matrices together at NOISE_BITS.
        together: of all layers together at the widths asked for, where only those of embedding and output are to be chosen.
        output_hessian: (n_embd, n_embd) E[x x^T] of the output matrix's inputs.
    """

    matrices: dict[str, float] = field(default_factory=dict)
    layers: dict[int, float] = field(default_factory=dict)
    together: float | None = None
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
        adjacent: layers that are measured together.
    """

    def __init__(
        self, source: Source, model: Any, tokens: NDArray[np.int32], probes: NDArray[np.int32], seed: int = 0, adjacent: int = 1
    ) -> None:
        self._source, self._tokens, self._probes, self._seed, self._adjacent = source, tokens, probes, seed, adjacent
        self._runner = _core.LayerRunner(model, tokens.shape[1])
        self._probe = _core.LayerRunner(model, probes.shape[1])
        self._n_layers, self._n_embd = int(model.config["n_layers"]), int(model.config["n_embd"])
        self._factor: tuple[Floats, int, Floats] | None = None  # Hessian, seed, its factor

    def measure(self, names: list[str], checkpoint: Path, progress: Callable[[int], None] = lambda layers: None) -> Sensitivity:
        """Of the matrices named. After each layer (or group of adjacent ones) everything found so far is kept in the file `checkpoint`: a
        killed run goes on from there."""
        found, first = Sensitivity(), 0
        hidden, probe = self._runner.embed(self._tokens), self._probe.embed(self._probes)
        reference = self._logprobs(probe, 0)
        if checkpoint.exists():
            hidden, probe, state = load_arrays(checkpoint)
            first, layers, found.matrices = json.loads(bytes(state))
            found.layers = {int(layer): cost for layer, cost in layers.items()}
        while first < self._n_layers:
            group = range(first, min(first + self._adjacent, self._n_layers))
            hidden, probe = self._measure_group(group, names, hidden, probe, reference, found)
            first = group.stop
            now = json.dumps([first, found.layers, found.matrices]).encode()
            keep_arrays(checkpoint, hidden, probe, np.frombuffer(now, np.uint8))
            progress(first)
        self._measure_embeddings(names, hidden, probe, reference, found)
        return found

    def measure_embeddings(
        self, embeddings: list[str], widths: Mapping[str, int], progress: Callable[[int], None] = lambda layers: None
    ) -> Sensitivity:
        """Of embedding and output (those named in `embeddings`) each, and of all the layers' matrices together, whose bits are `widths`."""
        found = Sensitivity()
        hidden, probe = self._runner.embed(self._tokens), self._probe.embed(self._probes)
        reference, noisy_probe = self._logprobs(probe, 0), probe
        for layer in range(self._n_layers):
            hidden, hessians = self._hessians(layer, hidden)
            sites = LayerSites(self._runner, layer)
            mine = sorted((name for name in widths if layer_of(name) == layer), key=sites.site)
            noisy = {name: self._noisy_at(name, sites, hessians, widths[name]) for name in mine}
            noisy_probe = self._changed(layer, noisy, noisy_probe)
            probe = self._probe.layer(layer, probe)
            progress(layer + 1)
        found.together = self._divergence(reference, noisy_probe, self._n_layers)
        self._measure_embeddings(embeddings, hidden, probe, reference, found)
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

    def _measure_group(
        self, group: range, names: list[str], hidden: Floats, probe: Floats, reference: Floats, found: Sensitivity
    ) -> tuple[Floats, Floats]:
        """Adds the costs of adjacent layers to `found`; returns the states of the text and of the probes behind the unchanged layers."""
        shares: dict[str, float] = {}
        changed = probe
        for layer in group:
            sites = LayerSites(self._runner, layer)
            mine = sorted((name for name in names if layer_of(name) == layer), key=sites.site)
            if not mine:
                hidden, probe, changed = (
                    self._runner.layer(layer, hidden),
                    self._probe.layer(layer, probe),
                    self._probe.layer(layer, changed),
                )
                continue
            hidden, hessians = self._hessians(layer, hidden)
            noisy = {name: self._noisy_at(name, sites, hessians, NOISE_BITS) for name in mine}
            after = self._probe.layer(layer, probe)
            stream = slice(0, self._n_embd)
            shares |= {
                name: _relative_change(after[..., stream], self._changed(layer, {name: w}, probe)[..., stream]) for name, w in noisy.items()
            }
            changed, probe = self._changed(layer, noisy, changed), after
        if shares:
            cost, total = self._divergence(reference, changed, group.stop), sum(shares.values()) or 1.0
            found.matrices |= {name: cost * share / total for name, share in shares.items()}
            for name, share in shares.items():
                layer = layer_of(name) or 0
                found.layers[layer] = found.layers.get(layer, 0.0) + cost * share / total
        return hidden, probe

    def _changed(self, layer: int, matrices: dict[str, Floats], probe: Floats) -> Floats:
        """The probes behind a layer with other matrices."""
        for name, w in matrices.items():
            self._probe.set_matrix(name, w)
        changed: Floats = self._probe.layer(layer, probe)
        for name in matrices:
            self._probe.set_matrix(name, None)
        return changed

    def _measure_embeddings(self, names: list[str], hidden: Floats, probe: Floats, reference: Floats, found: Sensitivity) -> None:
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

    def _noisy_at(self, name: str, sites: LayerSites, hessians: dict[str, SiteStatistics], bits: int) -> Floats:
        """A layer's matrix with the error that rounding to `bits` with error feedback leaves."""
        return self._noisy(name, hessians.get(sites.site(name), SiteStatistics()).hessian, bits)

    def _noisy(self, name: str, hessian: Floats | None, bits: int = NOISE_BITS) -> Floats:
        w = self._source.read(name)
        deviation = np.sqrt(DISTORTION[bits] * np.mean(np.square(w), axis=1, keepdims=True, dtype=np.float64))
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        noise = (rng.standard_normal(w.shape, dtype=np.float32) * deviation).astype(np.float32)
        if hessian is None:
            return w + noise
        seed = rotation_seed(name, self._seed)
        factor = self._factor_of(hessian, seed)
        return w + _core.rotate_rows(times_inverse(noise * np.diag(factor), factor), seed, inverse=True)

    def _factor_of(self, hessian: Floats, seed: int) -> Floats:
        """(I + U) D^1/2, H + damping = (I + U) D (I + U)^T being the rotated Hessian: of white noise e, what feeding errors back leaves is
        e (I + U)^-1. The last one is kept: matrices that read one site follow each other."""
        if self._factor is None or self._factor[0] is not hessian or self._factor[1] != seed:
            self._factor = (hessian, seed, upper_factor(rotate_hessian(hessian, seed), _DAMPING).astype(np.float32))
        return self._factor[2]

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

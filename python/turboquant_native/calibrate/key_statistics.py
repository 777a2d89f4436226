"""What a file says of its layers' keys, for caches in codes (docs/format.md): their means, which are subtracted before a key is rounded,
and balances, factors that move size from keys to queries or back, so that both roundings together cost least.

Everything is taken before the rotary embedding, where it does not depend on the position: keys have a mean mu there, and pairs of channels
keep their length when they turn. What is subtracted must be the same at every position. It is the mean of R(p) mu over the positions of
contexts of every length up to the model's own: all of mu for pairs that hardly turn, nothing for those that turn often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..engine.cache_types import KEY_STATISTICS

WINDOWS = 8  # of the calibration text, at most
_SHORT = 512  # positions: contexts of every length from here on count alike
_MOST = 8.0  # a balance is at most this, and at least its inverse
_FIRST = 1  # positions of a window that do not count: the first token's keys lie far from all others

Floats = NDArray[np.float64]


def vectors_of(kind: str) -> int:
    """How many a layer has."""
    return {"none": 0, "both": 2}.get(kind, 1)


def statistics(
    model: Any, tokens: NDArray[np.int32], kind: str, progress: Callable[[int], None] = lambda layers: None
) -> dict[str, NDArray[np.float32]]:
    """Tensor name -> (n_kv_heads, head_dim), of the layers that may keep codes.

    Args:
        model: the unquantized model, opened with precision "f32" on one device.
        tokens: (windows, seq_len), of which WINDOWS are read.
        kind: one of request.CACHE_STATISTICS.
    """
    found: dict[str, NDArray[np.float32]] = {}
    if kind == "none":
        return found
    runner, config = _core.LayerRunner(model, tokens.shape[1]), model.config
    hidden = runner.embed(np.ascontiguousarray(tokens[:: -(-len(tokens) // WINDOWS)]))
    for layer, described in enumerate(config["layers"]):
        if not described.get("keeps_codes"):
            hidden = runner.layer(layer, hidden)
            progress(layer + 1)
            continue
        sums = _Sums(tokens.shape[1])
        hidden = runner.layer_heads(layer, hidden, sums.add)
        for name, values in sums.result(kind, int(config["n_ctx_train"])).items():
            found[f"blk.{layer}{KEY_STATISTICS}{name}.weight"] = values.astype(np.float32)
        progress(layer + 1)
    return found


@dataclass
class _Sums:
    """Of a layer's queries and keys: (n_kv_heads, head_dim) each, queries of a key's whole group."""

    seq_len: int
    attention: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    keys: Floats | float = 0.0
    key_squares: Floats | float = 0.0
    query_squares: Floats | float = 0.0

    def add(self, q: NDArray[np.float32], k: NDArray[np.float32], attention: dict[str, Any]) -> None:
        self.attention = attention
        n_kv, dim = self.attention["n_kv_heads"], self.attention["head_dim"]
        windows = len(k) // self.seq_len
        keys = k.reshape(windows, self.seq_len, n_kv, dim)[:, _FIRST:].astype(np.float64)
        queries = q.reshape(windows, self.seq_len, n_kv, -1, dim)[:, _FIRST:]
        self.rows += windows * (self.seq_len - _FIRST)
        self.keys += keys.sum((0, 1))
        self.key_squares += np.square(keys).sum((0, 1))
        self.query_squares += np.square(queries, dtype=np.float64).mean(3).sum((0, 1))

    def result(self, kind: str, n_ctx: int) -> dict[str, Floats]:
        turns = mean_turns(np.asarray(self.attention["rope_frequencies"]), float(self.attention["rope_magnitude"]), n_ctx)
        pairs = bool(self.attention["rope_pairs"])
        mean = turned(np.asarray(self.keys) / self.rows, turns, pairs)
        # Sinks and soft caps see what all scores are shifted by.
        centres = kind in ("means", "both") and not self.attention["sinks"] and not self.attention["soft_cap"]
        found = {"mean": mean} if centres else {}
        if kind in ("balances", "both"):
            spread = np.asarray(self.key_squares) / self.rows - (np.square(mean) if centres else 0)
            found["balance"] = balance(spread, np.asarray(self.query_squares) / self.rows, 2 * len(turns), pairs)
        return found


def mean_turns(frequencies: Floats, magnitude: float, n_ctx: int) -> NDArray[np.complex128]:
    """(pairs,) the mean of exp(i p frequency) over positions p, each counted as often as contexts of lengths from _SHORT to n_ctx, all
    alike on a logarithmic scale, have it."""
    p = np.arange(max(n_ctx, 2 * _SHORT), dtype=np.float64)
    weights = 1 / np.maximum(p, _SHORT) - 1 / len(p)
    weights /= weights.sum()
    turns = [(weights * np.exp(1j * p * frequency)).sum() for frequency in frequencies.astype(np.float64)]
    return magnitude * np.array(turns, np.complex128)


def _pairs(dims: int, interleaved: bool) -> tuple[slice, slice]:
    """The first and the second channels of the pairs that turn."""
    return (slice(0, dims, 2), slice(1, dims, 2)) if interleaved else (slice(0, dims // 2), slice(dims // 2, dims))


def turned(x: Floats, turns: NDArray[np.complex128], interleaved: bool) -> Floats:
    """Vectors (..., head_dim) with each pair multiplied by its complex number; further channels stay."""
    first, second = _pairs(2 * len(turns), interleaved)
    out = x.copy()
    product = (x[..., first] + 1j * x[..., second]) * turns
    out[..., first], out[..., second] = product.real, product.imag
    return out


def balance(key_squares: Floats, query_squares: Floats, dims: int, interleaved: bool) -> Floats:
    """The s (..., head_dim), one number a pair, for which the mean squares of k / s and of q s have the smallest product."""
    first, second = _pairs(dims, interleaved)

    def of_pairs(x: Floats) -> Floats:
        out = np.maximum(x, 1e-12)
        out[..., first] = out[..., second] = out[..., first] + out[..., second]
        return out

    logs = (np.log(of_pairs(key_squares)) - np.log(of_pairs(query_squares))) / 4
    result: Floats = np.exp(np.clip(logs - logs.mean(-1, keepdims=True), -np.log(_MOST), np.log(_MOST)))
    return result

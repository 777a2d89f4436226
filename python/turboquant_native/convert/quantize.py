"""One matrix from float32 to TQN: outliers out, rotation, rounding. Everything that decides *how* is in the `MatrixSpec`.

The stages of a conversion meet here: plain conversion gives every matrix a spec and no Hessian; calibration adds `hessian`,
allocation chooses the specs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .container import ContainerWriter, Outliers
from .feedback import block_feedback

MAX_INPUTS = 65536
_FP16_MAX = 65504.0


@dataclass(frozen=True)
class MatrixSpec:
    """How one matrix is rounded.

    Attributes:
        bits: one of _core.FORMATS.
        seed: of the rotation, 0 <= seed < 2**64; None: not rotated.
        outliers: fraction of the weights kept in FP16.
        codebook: int8 in place of the format's own: T and U, (32,), for 1 to 4 bits; sorted values, (64,), for 6,
            where entry 63 - i is the negative of entry i.
        damping: added to the Hessian's diagonal, as a fraction of its mean.
    """

    bits: int
    seed: int | None
    outliers: float = 0.0
    codebook: NDArray[np.int8] | None = None
    damping: float = 0.01


@dataclass(frozen=True)
class QuantizedMatrix:
    """The result: W ~ outliers + scale * diag(row_scale) C R."""

    packed: _core.Packed
    seed: int | None
    outliers: Outliers | None
    squared_error: float  # sum over the weights

    @property
    def rotation(self) -> str:
        return "none" if self.seed is None else "hartley-hadamard"

    def add_to(self, writer: ContainerWriter, name: str) -> None:
        writer.add_quantized(name, self.packed, rotation=self.rotation, seed=self.seed or 0, outliers=self.outliers)

    def dequantize(self, threads: int = 0) -> NDArray[np.float32]:
        """(n_out, n_in) float32, what the file will stand for, in the original basis."""
        w = _core.decode(self.packed, threads)
        if self.seed is not None:
            w = _core.rotate_rows(w, self.seed, inverse=True, threads=threads)
        if self.outliers is not None:
            rows = np.repeat(np.arange(w.shape[0]), np.diff(self.outliers.ptr))
            w[rows, self.outliers.col] += self.outliers.val
        return w


def input_site(name: str) -> str:
    """The name from which a matrix's rotation is drawn, one for matrices that read the same: q, k, v; gate, up (of an expert).

    A rule for names alone, since a plan is made before there is a model to ask; calibration asks the graph (`LayerRunner.input_sites`).
    """
    site = name.removesuffix(".weight")
    return re.sub(r"attn_(k|v|qkv|gate)$", "attn_q", re.sub(r"ffn_up", "ffn_gate", site))


def rotation_seed(name: str, seed: int = 0) -> int:
    """The seed of a matrix's rotation: one per input site, shared by all experts of a layer; `seed` gives other draws."""
    site = re.sub(r"^(blk\.\d+\.ffn_\w+?)(_shexp|\.\d+)?$", r"\1", input_site(name))
    return int.from_bytes(hashlib.blake2b(f"{seed}:{site}".encode(), digest_size=8).digest(), "little")


def take_outliers(
    w: NDArray[np.float32],
    fraction: float,
    column_weight: NDArray[np.float32] | None = None,
    row_weight: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], Outliers | None]:
    """Split w (n_out, n_in) into what is rounded and the round(fraction * size) weights of largest w^2 * column_weight * row_weight, kept
    in FP16.

    Weights beyond FP16's range stay where they are. Equal weights are taken in row order, so the choice is deterministic.
    """
    count = min(round(fraction * w.size), w.size)
    if count == 0:
        return w, None
    score = np.square(w) if column_weight is None else np.square(w) * column_weight
    if row_weight is not None:
        score *= row_weight[:, None]
    score[np.abs(w) > _FP16_MAX] = -1
    flat = score.ravel()
    threshold = np.partition(flat, w.size - count)[w.size - count]
    above = np.flatnonzero(flat > threshold)
    equal = np.flatnonzero(flat == threshold)[: count - above.size]
    chosen = np.sort(np.concatenate([above, equal]))
    chosen = chosen[(flat[chosen] >= 0) & (w.ravel()[chosen] != 0)]
    if chosen.size == 0:
        return w, None
    rows, cols = np.divmod(chosen, w.shape[1])
    ptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=w.shape[0]))]).astype(np.int32)
    rest = w.copy()
    rest.ravel()[chosen] = 0
    return rest, Outliers(ptr, cols.astype(np.uint16), w.ravel()[chosen].astype(np.float16))


def rotate_hessian(hessian: NDArray[np.float32], seed: int, threads: int = 0) -> NDArray[np.float32]:
    """R H R^T for a Hessian (n_in, n_in) of the original basis."""
    half = _core.rotate_rows(hessian, seed, threads=threads)
    half = np.ascontiguousarray(half.T)  # a wide layer's takes a gigabyte: none is kept longer than it is needed
    return _core.rotate_rows(half, seed, threads=threads)


def _rounding_order(hessian: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Blocks of columns and columns, those with the strongest inputs first: the others can make up for their errors."""
    strength = np.diag(hessian).reshape(-1, _core.TILE_COLS).sum(axis=1)
    blocks = np.argsort(-strength, kind="stable")
    columns = (blocks[:, None] * _core.TILE_COLS + np.arange(_core.TILE_COLS)).ravel()
    return blocks.astype(np.int32), columns


@dataclass(frozen=True)
class ErrorFeedback:
    """How errors of rounding are fed back: the same for all matrices that read a site and have one seed and damping.

    Attributes:
        order: (n_in / 4,) blocks of columns in the order in which they are rounded.
        factor: (n_in, n_in) of `block_feedback`, in that order.
    """

    order: NDArray[np.int32]
    factor: NDArray[np.float32]

    @staticmethod
    def of(hessian: NDArray[np.float32], spec: MatrixSpec, threads: int = 0) -> ErrorFeedback:
        """For matrices of this spec under a Hessian of the original basis."""
        if spec.seed is not None:
            hessian = rotate_hessian(hessian, spec.seed, threads)
        order, columns = _rounding_order(hessian)
        return ErrorFeedback(order, block_feedback(np.ascontiguousarray(hessian[np.ix_(columns, columns)]), spec.damping))


def quantize_matrix(
    w: NDArray[np.float32],
    spec: MatrixSpec,
    hessian: NDArray[np.float32] | None = None,
    *,
    feedback: ErrorFeedback | None = None,
    row_weight: NDArray[np.float32] | None = None,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> QuantizedMatrix:
    """Round w.

    Args:
        w: (n_out, n_in), finite, original basis; not changed.
        spec: how.
        hessian: (n_in, n_in) E[x x^T] of the input site, original basis: chooses the outliers and feeds errors back. None: plain rounding.
        feedback: `ErrorFeedback.of(hessian, spec)`, where a caller has it already.
        row_weight: (n_out,) how much the outputs count when outliers are chosen: then by the energy of their rows, which sets the error
            that error feedback leaves, and not by the Hessian; None: all the same.
        threads: 0: all cores.
        progress: called with the number of weights done; what it raises stops the work.
        device: "cpu" or "cuda": where codes are searched when there is no Hessian.
    Raises ValueError naming a bad shape or width.
    """
    column_weight = None if hessian is None or row_weight is not None else np.diag(hessian)
    rest, outliers = take_outliers(w, spec.outliers, column_weight, row_weight)
    rotated = rest if spec.seed is None else _core.rotate_rows(rest, spec.seed, threads=threads)
    options: dict[str, Any] = {"codebook": spec.codebook, "threads": threads, "progress": progress, "device": device}
    if hessian is not None:
        feedback = feedback or ErrorFeedback.of(hessian, spec, threads)
        options["order"], options["feedback"] = feedback.order, feedback.factor
    packed = _core.encode(rotated, spec.bits, **options)
    error = packed.squared_error + _outlier_error(w, outliers)
    return QuantizedMatrix(packed, spec.seed, outliers, error)


def _outlier_error(w: NDArray[np.float32], outliers: Outliers | None) -> float:
    if outliers is None:
        return 0.0
    rows = np.repeat(np.arange(w.shape[0]), np.diff(outliers.ptr))
    difference = w[rows, outliers.col].astype(np.float64) - outliers.val
    return float(np.dot(difference, difference))

"""Error feedback by LAPACK: how a rounding error in one column is made up for in the columns that are rounded later.

The same factors as `_core.feedback`, which is the reference, some ten times as fast with wide layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core

_MOST_DAMPING = 1e3  # of the mean diagonal: more than any semidefinite matrix needs, whatever rounding did to it
_SOLVED = 128  # columns of a triangular system at a time
_ROWS = 512  # of the factor at a time, a multiple of TILE_COLS


def upper_factor(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float64]:
    """R (n, n), upper triangular, of a symmetric positive semidefinite H: H + damping * mean(diag H) * I = R R^T, but for a scale that
    makes H's largest diagonal element 1.

    LAPACK's lower factor of the matrix with rows and columns reversed. The damping is raised tenfold until the factorization succeeds.
    Raises ValueError where it never does.
    """
    scaled = hessian[::-1, ::-1].astype(np.float64)
    diagonal = np.einsum("ii->i", scaled)
    if not np.isfinite(scaled).all() or (diagonal < 0).any():
        raise ValueError("hessian: must be finite, its diagonal not negative")
    scaled /= diagonal.max() or 1.0
    original, mean = diagonal.copy(), float(diagonal.mean()) or 1.0
    while damping <= _MOST_DAMPING:
        diagonal[:] = original + damping * mean
        try:
            return np.asarray(np.linalg.cholesky(scaled), np.float64)[::-1, ::-1]
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-8)
    raise ValueError("hessian: is not positive semidefinite")


def times_inverse(x: NDArray[np.float32], upper: NDArray[np.float32]) -> NDArray[np.float32]:
    """x R^-1 (rows, n) for an upper triangular R (n, n): by substitution in blocks of columns."""
    out = np.empty_like(x)
    for first in range(0, x.shape[1], _SOLVED):
        columns = slice(first, first + _SOLVED)
        left = x[:, columns] - out[:, :first] @ upper[:first, columns]
        out[:, columns] = left @ np.linalg.inv(upper[columns, columns])
    return out


def times_definite_inverse(x: NDArray[np.float32], h: NDArray[np.float32]) -> NDArray[np.float32]:
    """x H^-1 (rows, n) for a symmetric positive definite H (n, n); where rounding has made it indefinite by a general solution, which may
    raise LinAlgError."""
    try:
        lower = np.linalg.cholesky(h)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.solve(h, x.T).T, np.float32)
    half = np.ascontiguousarray(times_inverse(x, lower.T)[:, ::-1])  # BLAS knows no negative strides
    return times_inverse(half, np.ascontiguousarray(lower[::-1, ::-1]))[:, ::-1]


def block_feedback(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    """U (n, n), strictly upper in blocks of TILE_COLS columns: H + damping * mean(diag H) * I = (U + I) D (U + I)^T, as `_core.encode`
    takes it."""
    width, n = _core.TILE_COLS, len(hessian)
    factor, feedback = upper_factor(hessian, damping), np.zeros((n, n), np.float32)
    of_block = np.arange(n).reshape(-1, width)  # its columns
    inverses = np.linalg.inv(factor[of_block[:, :, None], of_block[:, None, :]])
    for first in range(0, n, _ROWS):  # a wide layer's factor takes gigabytes: no copy of it
        behind = factor[first : first + _ROWS, first:].reshape(-1, (n - first) // width, width).transpose(1, 0, 2)
        part = np.matmul(behind, inverses[first // width :]).transpose(1, 0, 2)
        feedback[first : first + _ROWS, first:] = part.reshape(len(part), -1)
    for columns in of_block:
        feedback[columns[0] :, columns] = 0
    return feedback

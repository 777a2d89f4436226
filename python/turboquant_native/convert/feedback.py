"""Error feedback by LAPACK: how a rounding error in one column is made up for in the columns that are rounded later.

The same factors as `_core.feedback`, which is the reference, some ten times as fast with wide layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core

_MOST_DAMPING = 1e3  # of the mean diagonal: more than any semidefinite matrix needs, whatever rounding did to it
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

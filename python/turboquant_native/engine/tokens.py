"""Sequences of tokens: checking them, and what two of them share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.intc]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length


def check_tokens(tokens: Sequence[int] | Tokens, n_vocab: int) -> Tokens:
    """Tokens as an int array; TypeError for what is no integer, ValueError names the first one outside [0, n_vocab)."""
    ids = np.asarray(tokens)
    if ids.ndim != 1:
        raise ValueError(f"tokens must be one-dimensional, got shape {ids.shape}")
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {ids.tolist()[0]!r} at position 0")
    outside = np.flatnonzero((ids < 0) | (ids >= n_vocab))
    if outside.size:
        raise ValueError(f"token {int(ids[outside[0]])} at position {int(outside[0])} is outside [0, {n_vocab})")
    return np.ascontiguousarray(ids, dtype=np.intc)

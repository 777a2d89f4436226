"""The loss: how far the student's next-token distributions are from the teacher's, over the whole vocabulary, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from . import elementwise
from .network import Network

_WINDOWS = {"cpu": 1, "cuda": 16}  # measured together
_VALUES = {"cpu": 1 << 24, "cuda": 1 << 27}  # of logits at a time


def _chunks(network: Network, hidden: torch.Tensor) -> Iterator[slice]:
    """Of flattened rows."""
    rows = hidden.shape[0] * hidden.shape[1]
    step = max(1, _VALUES.get(hidden.device.type, 1 << 24) // network.n_vocab)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def add_gradients(student: Network, teacher: Network, tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Adds the gradients of `share` times the mean divergence on windows (n, seq_len) to what learns; returns the mean, a scalar.

    Logits of a chunk are differentiated as soon as they are there, so that no more than one chunk's are kept.
    """
    with torch.no_grad():
        target = teacher.hidden(tokens).flatten(0, 1)
    hidden = student.hidden(tokens)
    leaf = hidden.detach().flatten(0, 1).requires_grad_()
    sums = []
    divergence = elementwise.for_device(elementwise.divergence, student.device)
    for rows in _chunks(student, hidden):
        with torch.no_grad():
            reference = teacher.logits(target[None, rows])[0]
        loss = divergence(student.logits(leaf[None, rows])[0], reference).sum() * (share / len(leaf))
        loss.backward()
        sums.append(loss.detach())
    hidden.backward(leaf.grad.view_as(hidden))
    return torch.stack(sums).sum() / share


def divergences(student: Network, teacher: Network, windows: NDArray[np.int32]) -> NDArray[np.float64]:
    """(windows,) mean divergence of the second half of each."""
    found = []
    divergence = elementwise.for_device(elementwise.divergence, student.device)
    at_once, start = _WINDOWS.get(student.device.type, 1), windows.shape[1] // 2
    with torch.no_grad():
        for first in range(0, len(windows), at_once):
            tokens = torch.from_numpy(windows[first : first + at_once].astype(np.int64)).to(student.device)
            mine, theirs = (network.hidden(tokens)[:, start:].flatten(0, 1) for network in (student, teacher))
            rows = [
                divergence(student.logits(mine[None, part])[0], teacher.logits(theirs[None, part])[0])
                for part in _chunks(student, mine[None])
            ]
            found.append(torch.cat(rows).double().view(len(tokens), -1).mean(dim=1).cpu().numpy())
    return np.concatenate(found)

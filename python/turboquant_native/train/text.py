"""What a model is tuned on: text that its teacher wrote, real text beside it, and held-out text of both kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..calibrate.text import Tokens, file_windows, library_windows, vocabulary_of
from ..common.errors import ConvertError
from ..common.journal import Journal

HELD_OUT = 16  # windows of each kind


@dataclass(frozen=True)
class Corpus:
    """Windows of one length, (n, seq_len) tokens each.

    Attributes:
        sampled: drawn from the teacher.
        real: from the user's text or the standard library's.
        held_out: of both kinds, which nothing learns from.
        real_share: of a batch.
    """

    sampled: Tokens
    real: Tokens
    held_out: Tokens
    real_share: float
    seed: int

    def batch(self, step: int, windows: int) -> Tokens:
        """(windows, seq_len) of a step: every window once, in an order of the seed's, before any comes again."""
        real = round(windows * self.real_share) if len(self.real) else 0
        parts = [self._pick(self.sampled, step * (windows - real), windows - real, 0), self._pick(self.real, step * real, real, 1)]
        return np.concatenate([part for part in parts if len(part)])

    def _pick(self, windows: Tokens, first: int, count: int, kind: int) -> Tokens:
        places = np.arange(first, first + count)
        epochs = {int(epoch) for epoch in places // max(len(windows), 1)}
        orders = {epoch: np.random.default_rng([self.seed, kind, epoch]).permutation(len(windows)) for epoch in epochs}
        return windows[[orders[place // len(windows)][place % len(windows)] for place in places]] if count else windows[:0]


def real_windows(model: Any, calib: Path | None, windows: int, seq_len: int, quiet: bool = True) -> tuple[Tokens, Tokens]:
    """Of --calib, else of Python's own documentation and sources: what to learn from, and some of every part of it that is held out.
    ConvertError where there is too little text."""
    if calib is not None:
        found = file_windows(model, calib, windows + HELD_OUT, seq_len, overlap=False, quiet=quiet)
    elif vocabulary_of(model) is None:
        return np.empty((0, seq_len), np.int32), np.empty((0, seq_len), np.int32)
    else:
        found = library_windows(model, windows + HELD_OUT, seq_len)
    held = max(1, min(HELD_OUT, len(found) // 8))
    places = np.linspace(0, len(found) - 1, held).round().astype(int)
    return np.delete(found, places, axis=0), found[places]


def sample(
    model: Any,
    windows: int,
    seq_len: int,
    seed: int,
    slots: int,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokens:
    """(windows, seq_len) tokens drawn at temperature 1 among the engine's best candidates, `slots` sequences side by side. Half of them
    begin with BOS, the others with any token (LLM-QAT). Batches that `checkpoint` holds are not drawn again."""
    journal = None if checkpoint is None else Journal(checkpoint, (seq_len,), np.int32)
    parts = []
    for number, first in enumerate(range(0, windows, slots)):
        count = min(slots, windows - first)
        if journal is not None and len(journal) >= first + count:
            parts.append(journal.read()[first : first + count])
        else:
            parts.append(_sample_batch(model, count, seq_len, np.random.default_rng([seed, number])))
            if journal is not None:
                journal.put(first, parts[-1])
        progress(first + count)
    return np.concatenate(parts)


def _sample_batch(model: Any, count: int, seq_len: int, rng: np.random.Generator) -> Tokens:
    vocabulary, slots = vocabulary_of(model), np.arange(count, dtype=np.int32)
    out = np.empty((count, seq_len), np.int32)
    out[:, 0] = rng.integers(0, model.config["n_vocab"], count)
    if vocabulary is not None and vocabulary.bos >= 0:
        out[::2, 0] = vocabulary.bos
    context = _core.Context(model, n_ctx=seq_len, n_slots=count, n_batch=count)
    try:
        for position in range(seq_len - 1):
            best = context.forward_best(out[:, position].copy(), np.full(count, position, np.int32), slots, slots)
            out[:, position + 1] = _draw(best, rng)
    finally:
        context.close()
    return out


def _draw(best: Any, rng: np.random.Generator) -> Tokens:
    """One token a row, by the softmax of its candidates."""
    logits = np.where(best["token"] >= 0, best["logit"], -np.inf).astype(np.float64)
    if not np.isfinite(logits[:, 0]).all():
        raise ConvertError("the teacher's logits are not finite: it cannot be sampled from")
    weights = np.exp(logits - logits[:, :1]).cumsum(axis=1)
    chosen = (weights < rng.random((len(best), 1)) * weights[:, -1:]).sum(axis=1)
    return np.asarray(best["token"][np.arange(len(best)), chosen], np.int32)

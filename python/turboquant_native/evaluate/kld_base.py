"""The file that llama-perplexity writes with `--kl-divergence-base`, so that figures compare with those of published GGUF files.

Little-endian: the bytes `_logits_`; int32 ctx, n_vocab, windows; int32 tokens (windows, ctx); then for each scored row float32 step and
float32 smallest log-probability, n_vocab uint16 levels, padded to an even count. A log-probability is smallest + step * level; levels reach
16 nats below the best token, and what is less likely than exp(-16) does not count.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .evaluation import Logprobs, Reference, scored_rows

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_RANGE = 16.0  # nats


def _row_words(n_vocab: int) -> int:
    return 4 + n_vocab + n_vocab % 2


def quantize_rows(logprobs: Logprobs) -> NDArray[np.uint16]:
    """Rows of log-probabilities (rows, n_vocab) as they stand in the file, (rows, 4 + padded n_vocab) uint16."""
    rows, n_vocab = logprobs.shape
    best = logprobs.max(axis=1, keepdims=True)
    least = np.maximum(logprobs.min(axis=1, keepdims=True), best - np.float32(_RANGE))
    step = (best - least) / np.float32(65535)
    packed = np.zeros((rows, _row_words(n_vocab)), np.uint16)
    packed[:, :4] = np.concatenate([step, least], axis=1).astype("<f4").view("<u2")
    packed[:, 4 : 4 + n_vocab] = np.rint(np.clip((logprobs - least) / np.where(step > 0, step, 1), 0, 65535))
    return packed


def restore_rows(packed: NDArray[np.uint16], n_vocab: int) -> Logprobs:
    """Log-probabilities of rows in the file's form."""
    head = np.ascontiguousarray(packed[:, :4]).view("<f4")
    logprobs: Logprobs = packed[:, 4 : 4 + n_vocab] * head[:, :1] + head[:, 1:2]
    return logprobs


class KldBaseFile:
    """A reference read from such a file; ValueError names what is wrong with it."""

    floor = -_RANGE

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(path, "rb") as file:
            self._read_header(file, size)

    def _read_header(self, file: BinaryIO, size: int) -> None:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise ValueError(f"{self.path} is no file of log-probabilities (it does not begin with {_MAGIC.decode()})")
        _, ctx, self.n_vocab, count = _HEADER.unpack(header)
        if ctx < 4 or self.n_vocab < 1 or count < 1:
            raise ValueError(f"{self.path}: impossible header: ctx {ctx}, vocabulary {self.n_vocab}, windows {count}")
        self._rows = len(scored_rows(ctx))
        self._start = _HEADER.size + 4 * ctx * count
        expected = self._start + 2 * count * self._rows * _row_words(self.n_vocab)
        if size != expected:
            raise ValueError(f"{self.path} has {size} bytes, its header asks for {expected}")
        self.windows = np.fromfile(file, "<i4", ctx * count).reshape(count, ctx)
        if self.windows.min() < 0 or self.windows.max() >= self.n_vocab:
            raise ValueError(f"{self.path}: tokens outside [0, {self.n_vocab})")

    def limit(self, windows: int | None) -> None:
        """Uses the first windows only."""
        self.windows = self.windows[:windows]

    def logprobs(self, index: int) -> Logprobs:
        words = self._rows * _row_words(self.n_vocab)
        packed = np.fromfile(self.path, "<u2", words, offset=self._start + 2 * words * index)
        return restore_rows(packed.reshape(self._rows, -1), self.n_vocab)


def write(path: str | Path, reference: Reference, progress: Callable[[int], None] | None = None) -> None:
    """Evaluates a reference into such a file; `progress` is called with the number of windows written."""
    count, ctx = reference.windows.shape
    with open(path, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, ctx, reference.n_vocab, count))
        file.write(reference.windows.astype("<i4").tobytes())
        for index in range(count):
            file.write(quantize_rows(reference.logprobs(index)).astype("<u2").tobytes())
            if progress is not None:
                progress(index + 1)

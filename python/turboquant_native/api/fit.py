"""Does a model fit before it is loaded, with how much context, and how fast will it be?

Memory is weights (the mapped file) + keys and values at the whole context + activations of one batch + the program itself. Speed is what
this machine reads in a second (as earlier answers showed, else its memory bandwidth, a bound from above) over what a token must read.
"""

from __future__ import annotations

import os
import shlex
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._core import FormatError, GgufFile, cached_bytes
from ..common.memory import available_memory
from ..convert.architectures import PER_LAYER_TABLE
from ..convert.inspection import EMBEDDINGS, FileSummary, describe
from . import machine

_PROGRAM = 160 << 20  # bytes: interpreter, libraries, tokenizer
_LOGIT_ROWS, _BEST_BYTES = 64, 64 * 8  # rows of logits that the engine holds, bytes of each one's best tokens
_FLOAT = 4
_STEP = 256  # positions: contexts are offered in multiples of it
_UNASKED = 0.9  # of the free memory, for a context that nobody asked for
_NUMBERS = ("f16", "f32")  # caches without codes
_OF_LAYERS = ("attention.head_count_kv", ".feed_forward_length")  # a number, or one for each layer: the largest counts
_RUNS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Shape:
    """What of a model's shape decides its memory; widths are numbers of floats."""

    n_ctx_train: int
    layers: tuple[tuple[int, int, int], ...]  # (n_kv_heads, head_dim, window) of each
    row_width: int  # of all activations of one token together
    n_vocab: int

    def position_bytes(self, cache: str) -> int:
        """Keys and values of one position in all layers; those with a window keep float16 where the others keep codes."""
        windowed = cache if cache in _NUMBERS else "f16"
        return sum(heads * cached_bytes(windowed if window else cache, dim) for heads, dim, window in self.layers)

    def workspace(self, n_batch: int) -> int:
        """Bytes of activations and logits of a batch."""
        return _FLOAT * n_batch * self.row_width + min(n_batch, _LOGIT_ROWS) * (_FLOAT * self.n_vocab + _BEST_BYTES)


@dataclass(frozen=True)
class Fit:
    """The estimate. Bytes; tokens a second, 0 where nothing is known; `measured`: from earlier answers, not from memory bandwidth alone."""

    model: str
    n_ctx: int
    n_ctx_train: int
    largest_ctx: int  # that fits, at most what the model was trained for
    weights: int
    cache: int
    workspace: int
    free: int
    tokens_per_second: float
    measured: bool

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.workspace

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "needed": self.needed, "fits": self.fits}


class ModelFile:
    """A model file looked at before it is loaded.

    Raises ValueError for weights that the engine does not run (their type by name, and the command that converts them), FormatError for a
    damaged file, OSError where it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = GgufFile(path)
        self.path, self._summary = str(path), describe(file)
        self.metadata = {key: value for key, value in file.metadata.items() if isinstance(value, (str, int, float))}  # no vocabularies
        self.metadata |= {key: max(file.metadata[key]) for key in file.metadata if key.endswith(_OF_LAYERS) and key not in self.metadata}
        _check_types(self._summary)
        self.shape = _shape(self.metadata, self._summary, file.attention_layers())

    @property
    def weight_bytes(self) -> int:
        """Of all tensors."""
        return self._summary.tensor_bytes

    @property
    def token_bytes(self) -> int:
        """What one token must read: of an embedding beside an output matrix only a row, of experts only those that are used."""
        names = {tensor.name for tensor in self._summary.tensors}
        skipped = (PER_LAYER_TABLE, EMBEDDINGS[0] if EMBEDDINGS[1] in names else None)
        used, experts = (self._integer(key, 0) for key in ("expert_used_count", "expert_count"))
        share = used / experts if experts else 1.0
        sizes = ((share if "_exps." in t.name else 1.0) * t.bytes for t in self._summary.tensors if t.name not in skipped)
        return int(sum(sizes))

    def fit(
        self, n_ctx: int | None, n_batch: int = 512, threads: int = 0, gpu: bool = False, probe: bool = True, cache: str = "f16"
    ) -> Fit:
        """The estimate at a context (None: the model's own, as far as it fits; 0: the model's own). probe: measure the memory's bandwidth
        where nothing better is known. cache: type of keys and values."""
        shape, free = self.shape, available_memory()
        position = shape.position_bytes(cache)

        def workspace(positions: int) -> int:
            return shape.workspace(min(n_batch, positions)) + _PROGRAM  # the engine's batch is no longer than its context

        def needed(positions: int) -> int:
            return self.weight_bytes + positions * position + workspace(positions)

        def largest(memory: float) -> int:
            fitting = bisect_right(range(1, shape.n_ctx_train + 1), memory, key=needed)
            return fitting if fitting in (shape.n_ctx_train, fitting % _STEP) else fitting // _STEP * _STEP

        chosen = (largest(_UNASKED * free) or largest(free) if n_ctx is None else n_ctx) or shape.n_ctx_train
        rate, measured = machine.reading_rate(threads, gpu, probe)
        return Fit(
            model=self.path,
            n_ctx=chosen,
            n_ctx_train=shape.n_ctx_train,
            largest_ctx=largest(free),
            weights=self.weight_bytes,
            cache=chosen * position,
            workspace=workspace(chosen),
            free=free,
            tokens_per_second=rate / max(self.token_bytes, 1),
            measured=measured,
        )

    def _integer(self, key: str, default: int | None = None) -> int:
        return _integer(self.path, self.metadata, key, default)


def _check_types(summary: FileSummary) -> None:
    """ValueError for a file whose matrices have to be converted first."""
    kinds: dict[str, int] = {}
    for tensor in summary.tensors:
        if len(tensor.shape) > 1 and not tensor.type.startswith("TQN") and tensor.type not in _RUNS:
            kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.bytes
    if kinds:
        most = max(kinds, key=lambda kind: kinds[kind])
        path = Path(summary.path)
        raise ValueError(
            f"{path}: an ordinary GGUF file of type {most}, which has to be converted once: "
            f"tqn convert {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.tqn.gguf')))}"
        )


def _integer(path: str, metadata: dict[str, Any], key: str, default: int | None) -> int:
    """A number of the architecture's metadata; FormatError names the key where it is missing or no number."""
    full = f"{metadata.get('general.architecture')}.{key}"
    value = metadata.get(full, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise FormatError(f'"{path}": {full} must be a whole number, got {value!r}')
    return value


def _shape(metadata: dict[str, Any], summary: FileSummary, layers: list[tuple[int, int, int]]) -> Shape:
    def number(key: str, default: int | None = None) -> int:
        return _integer(summary.path, metadata, key, default)

    n_embd, heads = number("embedding_length"), max(number("attention.head_count"), 1)
    head_dim = number("attention.key_length", n_embd // heads)
    kv_heads = number("attention.head_count_kv", heads)
    experts = number("expert_count", 0)
    n_ff = 0 if experts else number("feed_forward_length")
    embedding = next((tensor for tensor in summary.tensors if tensor.name == EMBEDDINGS[0]), None)
    if embedding is None:
        raise FormatError(f'"{summary.path}": has no tensor {EMBEDDINGS[0]}')
    branch = n_embd if any(tensor.name.endswith("post_ffw_norm.weight") for tensor in summary.tensors) else 0
    row_width = n_embd + branch + 2 * heads * head_dim + 2 * kv_heads * head_dim + 2 * n_ff
    return Shape(number("context_length"), tuple(layers), row_width, embedding.shape[0])

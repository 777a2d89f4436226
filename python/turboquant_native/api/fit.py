"""Does a model fit before it is loaded, with how much context, and how fast will it be?

Memory is weights (the mapped file) + keys and values at the whole context + recurrent states with all the snapshots of them that may be
kept + activations of one batch + the program itself. Speed is what this machine reads in a second (as earlier answers showed, else its
memory bandwidth, a bound from above) over what a token must read, and of recurrent states write.
"""

from __future__ import annotations

import os
import re
import shlex
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._core import FormatError, GgufFile
from ..common.memory import available_memory
from ..convert.architectures import PER_LAYER_TABLE
from ..convert.inspection import EMBEDDINGS, FileSummary, describe
from ..engine.cache_types import is_balanced
from ..engine.snapshots import SNAPSHOTS_A_SLOT
from . import machine

_PROGRAM = 160 << 20  # bytes: interpreter, libraries, tokenizer
_LOGIT_ROWS, _BEST_BYTES = 64, 64 * 8  # rows of logits that the engine holds, bytes of each one's best tokens
_FLOAT = 4
_STEP = 256  # positions: contexts are offered in multiples of it
_UNASKED = 0.9  # of the free memory, for a context that nobody asked for
_EXPERTS = re.compile(r"_exps\.|\.ffn_(gate|up|down)\.\d+\.")  # tensors of all of a layer's experts, or of one
_RUNS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Memory:
    """Bytes of a context of one sequence."""

    cache: int  # keys and values of all positions
    states: int  # of recurrent layers, whatever the positions; a snapshot takes as much again
    planes: int  # activations and logits of a batch
    scratch: int  # in which mixtures of experts work


@dataclass(frozen=True)
class Fit:
    """The estimate. Bytes; tokens a second, 0 where nothing is known; `measured`: from earlier answers, not from memory bandwidth alone."""

    model: str
    n_ctx: int
    n_ctx_train: int
    largest_ctx: int  # that fits, at most what the model was trained for
    weights: int
    cache: int
    states: int  # of recurrent layers, and of the snapshots of them that may be kept
    workspace: int
    free: int
    tokens_per_second: float
    measured: bool

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.states + self.workspace

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "needed": self.needed, "fits": self.fits}


class ModelFile:
    """A model file looked at before it is loaded.

    Raises ValueError for weights that the engine does not run (their type by name, and the command that converts them), FormatError for a
    damaged file, UnsupportedError for an architecture that the engine lacks, OSError where the file cannot be read.

    Attributes:
        n_ctx_train: positions that the model was trained for.
        layers: (n_kv_heads, head_dim, window) of each layer that keeps keys and values.
        balanced: whether all layers that may keep codes have means and balances of their keys.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = file = GgufFile(path)
        self.path, self._summary = str(path), describe(file)
        self.metadata = {key: value for key, value in file.metadata.items() if isinstance(value, (str, int, float))}  # no vocabularies
        _check_types(self._summary)
        self.layers = tuple(file.attention_layers())
        self.balanced = is_balanced((name for name, _, _ in file.tensors()), file.layers_with_codes())
        self.n_ctx_train = self._integer("context_length")
        embedding = next((tensor for tensor in self._summary.tensors if tensor.name == EMBEDDINGS[0]), None)
        if embedding is None:
            raise FormatError(f'"{path}": has no tensor {EMBEDDINGS[0]}')
        self._n_vocab = embedding.shape[0]

    @property
    def weight_bytes(self) -> int:
        """Of all tensors."""
        return self._summary.tensor_bytes

    @property
    def token_bytes(self) -> int:
        """What one token must read and write: of an embedding beside an output matrix only a row, of experts only those that are used;
        recurrent states both ways."""
        names = {tensor.name for tensor in self._summary.tensors}
        skipped = (PER_LAYER_TABLE, EMBEDDINGS[0] if EMBEDDINGS[1] in names else None)
        used, experts = (self._integer(key, 0) for key in ("expert_used_count", "expert_count"))
        share = used / experts if experts else 1.0
        sizes = ((share if _EXPERTS.search(t.name) else 1.0) * t.bytes for t in self._summary.tensors if t.name not in skipped)
        return int(sum(sizes)) + 2 * self.memory(0, 0).states

    def memory(self, n_ctx: int, n_batch: int, cache: str = "f16") -> Memory:
        """Of a context of so many positions and rows of a batch, with keys and values of a type."""
        found = self._file.context_memory(n_ctx, cache)
        logits = min(n_batch, _LOGIT_ROWS) * (_FLOAT * self._n_vocab + _BEST_BYTES)
        return Memory(found["positions"], found["recurrent"], n_batch * found["row"] + logits, n_batch * found["expert_row"])

    def fit(
        self, n_ctx: int | None, n_batch: int = 512, threads: int = 0, gpu: bool = False, probe: bool = True, cache: str = "f16"
    ) -> Fit:
        """The estimate at a context (None: the model's own, as far as it fits; 0: the model's own). probe: measure the memory's bandwidth
        where nothing better is known. cache: type of keys and values."""
        free, weights = available_memory(), self.weight_bytes
        rate, measured = machine.reading_rate(threads, gpu, probe)
        tokens_per_second = rate / max(self.token_bytes, 1)

        def fit_of(positions: int, largest_ctx: int = 0) -> Fit:
            memory = self.memory(positions, min(n_batch, positions), cache)  # the engine's batch is no longer than its context
            return Fit(
                model=self.path,
                n_ctx=positions,
                n_ctx_train=self.n_ctx_train,
                largest_ctx=largest_ctx,
                weights=weights,
                cache=memory.cache,
                states=(1 + SNAPSHOTS_A_SLOT) * memory.states,
                workspace=memory.planes + memory.scratch + _PROGRAM,
                free=free,
                tokens_per_second=tokens_per_second,
                measured=measured,
            )

        def largest(memory: float) -> int:
            fitting = bisect_right(range(1, self.n_ctx_train + 1), memory, key=lambda positions: fit_of(positions).needed)
            return fitting if fitting in (self.n_ctx_train, fitting % _STEP) else fitting // _STEP * _STEP

        chosen = (largest(_UNASKED * free) or largest(free) if n_ctx is None else n_ctx) or self.n_ctx_train
        return fit_of(chosen, largest(free))

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

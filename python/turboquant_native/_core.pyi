"""The compiled core. Arrays are NumPy, C-contiguous; every compute call releases the GIL.

Errors: ValueError (arguments), FormatError (a damaged or hostile file), UnsupportedError (this build or machine cannot), OSError,
MemoryError.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class FormatError(ValueError): ...
class UnsupportedError(RuntimeError): ...

BUILD: str  # compiler, standard library, target: "clang 22.1.8, libc++, x86_64-linux-gnu.2.28"

# --- the format (cpp/format/tqn.h) ------------------------------------------------------------------------------------------------
FORMAT_VERSION: int
TILE_ROWS: int
TILE_COLS: int
TILE_STEPS: int
FORMATS: tuple[int, ...]

def plane_bytes(n_out: int, n_in: int, bits: int) -> dict[str, int]:
    """Bytes of the planes "codes", "row_scale" and "codebook"; ValueError where the shape or width is unusable."""

def cached_bytes(cache: str, head_dim: int) -> int:
    """Bytes of one position's key and value of a head of `head_dim` elements; cache: as `Context` has it ("auto" counts as f16)."""

def default_codebook(bits: int) -> tuple[NDArray[np.int8], float]:
    """int8 and the unit that scales its values to N(0, 1): T and U, (32,), for 1 to 4 bits; (64,) for 6; empty and 0.0 for 8."""

def reference_decode(codes: NDArray[np.uint8], bits: int, n_out: int, n_in: int, codebook: NDArray[np.int8]) -> NDArray[np.int8]:
    """(n_out, n_in) int8 values by the scalar oracle."""

# --- quantization (cpp/quant) -----------------------------------------------------------------------------------------------------
class Packed:
    @property
    def bits(self) -> int: ...
    @property
    def n_out(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def squared_error(self) -> float: ...
    @property
    def codes(self) -> NDArray[np.uint8]: ...
    @property
    def row_scale(self) -> NDArray[np.float16]:
        """(padded rows,)"""
    @property
    def codebook(self) -> NDArray[np.int8]:
        """(32,) for 1 to 4 bits, (64,) for 6, empty for 8"""

def encode(
    w: NDArray[np.float32],
    bits: int,
    *,
    codebook: NDArray[np.int8] | None = None,
    unit_scale: NDArray[np.float32] | None = None,
    feedback: NDArray[np.float32] | None = None,
    order: NDArray[np.int32] | None = None,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> Packed:
    """Round rotated weights w (n_out, n_in) onto codes. feedback: (n_in, n_in) strictly block upper, LDLQ; None: plain rounding.

    order: (n_in / 4,) the blocks of 4 columns as they are rounded, one after the other, and as they stand in `feedback`; None: from the
    left to the right.
    device: "cpu" or "cuda", which searches the codes of 1 to 4 bits where there is no feedback, all rows of a tile weighing the same.
    `progress` is called with the number of weights done; an exception it raises (KeyboardInterrupt) stops the work.
    """

def feedback(hessian: NDArray[np.float32] | NDArray[np.float64], damp: float, threads: int = 0) -> NDArray[np.float32]:
    """(n, n) -> U (n, n), strictly upper in blocks of 4 columns: H + damp * mean(diag H) * I = (U + I) D (U + I)^T, for `encode`.

    H: E[x x^T] of the rotated inputs, symmetric, positive semidefinite, of any magnitude; its upper triangle is read. Damping is raised
    tenfold until the factorization succeeds. ValueError: not square, not finite, negative diagonal, indefinite even so.
    """

def decode(packed: Packed, threads: int = 0) -> NDArray[np.float32]:
    """(n_out, n_in) scale * row_scale * c, still rotated."""

def rotate_rows(w: NDArray[np.float32], seed: int, inverse: bool = False, threads: int = 0) -> NDArray[np.float32]:
    """Rows w -> w D K (inverse: w K D); a new array."""

def encoder_isa() -> str: ...

# --- files (cpp/gguf) -------------------------------------------------------------------------------------------------------------
class GgufFile:
    """A validated, memory-mapped GGUF file; arrays are views that keep it alive."""
    def __init__(self, path: str | os.PathLike[str], *, validate: bool = True) -> None:
        """validate=False checks the packed matrices at their first use instead of now: for tools that look at damaged files."""
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int:
        """Bytes of the file."""
    @property
    def data_offset(self) -> int:
        """Bytes of the header with its padding."""
    @property
    def metadata(self) -> dict[str, Any]:
        """Key -> bool, int, float, str or list; bytes of strings that are no UTF-8 as surrogate escapes."""
    def attention_layers(self) -> list[tuple[int, int, int]]:
        """(n_kv_heads, head_dim, window) of each layer that has keys of its own; window 0: it sees everything. Raises FormatError and
        UnsupportedError as opening the model does."""
    def layers_with_codes(self) -> list[int]:
        """Numbers of the layers whose keys and values become codes in caches of codes. Raises as attention_layers() does."""
    def context_memory(self, n_ctx: int, cache: str) -> dict[str, int]:
        """Bytes of a context of one slot on one device: "positions" (keys and values of n_ctx positions), "recurrent" (states of fixed
        size; a snapshot takes as much again), "row" (planes, for each row of a batch, logits aside), "expert_row" (scratch of mixtures of
        experts, likewise). cache: as in Context. ValueError for another cache; else as attention_layers()."""
    def tensors(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """(name, ggml type number, shape in NumPy order), in file order."""
    def places(self) -> list[tuple[str, int, int]]:
        """(name, offset from the start of the file, bytes) of each tensor's data, in file order."""
    def data(self, name: str) -> NDArray[Any]:
        """The raw plane: float32, float16, uint16 for BF16, int8/16/32/64, else uint8 bytes."""
    def quantized(self) -> dict[str, dict[str, Any]]:
        """The entries of turboquant.tensors, validated: bits, n_out, n_in, scale, rotation, seed (int), outliers (count)."""
    def dequantize(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A matrix, packed or F32, F16, BF16, as float32 (n_out, n_in) in the original basis (rows [a, b) only, when given).

        All dimensions of an ordinary tensor but the last count as rows. ValueError for an unknown name or rows out of range,
        UnsupportedError for other types.
        """

# --- the engine (cpp/model) -------------------------------------------------------------------------------------------------------
class Model:
    def __init__(
        self,
        path: str | bytes,
        *,
        device: str = "cpu",
        threads: int = 0,
        precision: str = "int8",
        lock_memory: bool = False,
        main_device: int = 0,
    ) -> None:
        """path: as bytes (`os.fsencode`) where it may be no UTF-8.
        device: "cpu", "cuda", "metal", "cuda:1", or parts with their numbers of layers, "cpu*8,cuda:0*12"; one part may come without a
        number and takes the rest ("cpu,cuda*20"). The embedding is on the first part, the output on the last.
        precision: "int8" (activations of packed matrices) or "f32"."""
    @property
    def file(self) -> GgufFile: ...
    @property
    def config(self) -> dict[str, Any]:
        """architecture, n_layers, n_embd, n_vocab, n_ctx_train, norm_eps; and "layers", a dict for each layer. Its "mixer" is "attention"
        (n_heads, n_kv_heads, head_dim, window, rope_base, rope_dims), its "feed_forward" "gated" (n_ff) or "experts" (n_ff, n_experts,
        n_experts_used, n_ff_shared)."""
    @property
    def backend(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def close(self) -> None: ...

class Snapshot:
    """A moment of a slot of a Context, made by `Context.snapshot`."""
    @property
    def slot(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def intact(self) -> bool:
        """False once the slot held fewer positions: then the snapshot is lost."""
    @property
    def memory_bytes(self) -> int:
        """What it keeps a copy of: recurrent states; 0 in models of attention alone."""

class Context:
    def __init__(self, model: Model, *, n_ctx: int = 0, n_slots: int = 1, n_batch: int = 512, cache: str = "auto") -> None:
        """n_ctx: positions a slot, 0: the model's.

        cache: "f16", "f32", codes of 8 or 4 bits for keys and values ("k8v8", "k8v4", "k4v8", "k4v4"), or "auto" (f32 where precision
        is "f32" and the device can).
        """
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_slots(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def cache(self) -> str:
        """The type of cached keys and values; "auto" has become "f16" or "f32"."""
    def forward(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], slots: NDArray[np.int32], output_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """(len(output_rows), n_vocab) logits; at most n_batch rows."""
    def forward_best(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], slots: NDArray[np.int32], output_rows: NDArray[np.int32]
    ) -> NDArray[np.void]:
        """(len(output_rows), 64) best tokens of each row as records ("logit" float32, "token" int32), descending, ties to the lower token;
        token -1 where there are no more above -inf."""
    def read_logits(self, row: int = 0) -> NDArray[np.float32]:
        """(n_vocab,) logits of an output row of the latest pass; ValueError when it left none (more than 64 rows, or an embedding)."""
    def embed(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], slots: NDArray[np.int32], output_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]: ...
    def eval(self, tokens: NDArray[np.int32], position: int, slot: int = 0, logits: str = "last") -> NDArray[np.float32]:
        """Tokens of one slot from `position` on, cut into batches; logits "last" (n_vocab,), "all" (n, n_vocab), "none" (0,)."""
    def eval_best(self, tokens: NDArray[np.int32], position: int, slot: int = 0) -> NDArray[np.void]:
        """The same, (64,) best tokens after the last one, as `forward_best` gives them."""
    def positions(self, slot: int = 0) -> int:
        """How many positions a slot holds. A pass may start there, or earlier: then the slot first goes back to that position."""
    def rewind(self, slot: int, n: int) -> None:
        """The slot forgets all but its first n positions. UnsupportedError where a layer cannot go back: start again at 0, or restore."""
    def snapshot(self, slot: int) -> Snapshot:
        """The moment that a slot is in."""
    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Back to that moment, in the same slot or another one; ValueError when the snapshot is lost or of another context."""
    def save(self, slot: int, n: int) -> bytes:
        """The slot's first n positions, for a context of the same model, perhaps in another process."""
    def load(self, slot: int, state: bytes) -> None:
        """FormatError, with the slot unchanged, for bytes that `save` did not write for such a model and type of cache."""
    def convert(self, state: bytes, n: int, cache: str) -> bytes:
        """A saved state's first n positions as a context of the same model with that type of cache ("auto": this one's) would have saved
        them; the state may be of any type. UnsupportedError where recurrent layers would have to know an earlier moment."""
    def state_bytes(self, n: int) -> int:
        """Bytes of a saved state of n positions."""
    def release(self, slot: int) -> None:
        """Rewinds a slot to 0 and gives its memory back to the system where the device can."""
    def copy_slot(self, source: int, target: int, n: int) -> None:
        """The target becomes the source's first n positions."""
    def profile(self, on: bool) -> dict[str, float]:
        """Seconds since the last call by kind of operation, and whether to measure from now on: embedding, linear, attention, norms,
        experts, output (logits), barrier (waiting for other threads); of all contexts of the model. Empty where the device measures
        nothing."""
    def set_threads(self, decode: int, prompt: int) -> None: ...
    def close(self) -> None:
        """Frees everything; waits for a running pass. Later calls raise RuntimeError."""

class InputSite:
    """One vector a token that one or several matrices of a layer read."""
    @property
    def name(self) -> str:
        """Of its first matrix without ".weight": "blk.3.attn_q" where q, k and v read the same."""
    @property
    def group(self) -> str:
        """Of sites of which each token visits some: "blk.3.ffn_gate" of all experts' "blk.3.ffn_gate.7"; else the name."""
    @property
    def matrices(self) -> list[str]:
        """Names of the tensors that read it."""
    @property
    def writes_to(self) -> str:
        """Where its one matrix writes to the residual stream: the site that read the stream last. Empty for matrices that do not, and in
        mixtures of experts."""
    @property
    def adds_directly(self) -> bool:
        """What that matrix gives is added to the stream as it is: no scale, no norm between."""

class LayerRunner:
    """The model one layer at a time over windows of seq_len tokens, for calibration (CPU).

    Hidden rows are the residual stream, (n_embd), and behind it what some models' layers read of more than the layer before."""
    def __init__(self, model: Model, seq_len: int) -> None: ...
    def input_sites(self, layer: int) -> list[InputSite]:
        """What a tap is shown in this layer, in the order of the computation."""
    def set_matrix(self, name: str, w: NDArray[np.float32] | None) -> None:
        """Use w (n_out, n_in) in place of the file's matrix; None: the file's own again."""
    def embed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """(windows, seq_len) -> (windows, seq_len, row width)"""
    def enter(self, layer: int, hidden: NDArray[np.float32]) -> LayerPass:
        """Windows (windows, seq_len, row width) before a layer."""
    def layer(
        self, index: int, hidden: NDArray[np.float32], tap: Callable[[str, NDArray[np.float32]], Any] | None = None
    ) -> NDArray[np.float32]:
        """A new array of hidden's shape. tap(site, x): x (rows, width), valid during the call only; sites as in layer_runner.h."""
    def layer_heads(
        self,
        index: int,
        hidden: NDArray[np.float32],
        heads: Callable[[NDArray[np.float32], NDArray[np.float32], dict[str, Any]], Any],
    ) -> NDArray[np.float32]:
        """As layer(). heads(q, k, attention), where the layer has keys of its own: queries (rows, n_heads * head_dim) and keys (rows,
        n_kv_heads * head_dim) of whole windows before their rotary embedding, and what the layer's attention is: "n_kv_heads", "head_dim",
        "soft_cap", "sinks", "rope_frequencies", "rope_magnitude", "rope_pairs"."""
    def head(self, hidden: NDArray[np.float32], tap: Callable[[str, NDArray[np.float32]], Any] | None = None) -> NDArray[np.float32]:
        """(rows, row width), before the output norm -> (rows, n_vocab); tap site "output", where True spares the product."""

class LayerPass:
    """Windows on their way through a layer of a LayerRunner."""
    def run(self, tap: Callable[[str, NDArray[np.float32]], Any] | None = None) -> None:
        """To the layer's end. Rows for which tap(site, x) returns True stop before the site's operation; the next run goes on there, with
        the matrices of then, and shows the site again."""
    @property
    def hidden(self) -> NDArray[np.float32]:
        """(windows, seq_len, row width): the rows where the windows stand, a new array."""

def graph(model: Model, n_ctx: int) -> list[list[dict[str, Any]]]:
    """The operations that a pass in a context of n_ctx positions consists of: the embedding's, each layer's, the output's.

    An operation is a dict, "op" its kind: "embed", "linear", "norm", "add_norm", "attention", "soft_cap" or "moe", the rest the fields of
    cpp/backend/backend.h. Planes are called "x" (the residual stream), "q", "k", "v", "attended", "gate", "up", "branch", "logits";
    matrices and vectors as their tensors in the file, None where there is none. UnsupportedError for a model on several devices.
    """

class Sampler:
    def __init__(
        self,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        seed: int = 0,
    ) -> None: ...
    def sample(self, logits: NDArray[np.float32], history: Sequence[int] | NDArray[np.int32]) -> int: ...
    def needed_candidates(self, n_vocab: int) -> int:
        """How many of the best tokens decide as all n_vocab logits would; 0: all logits are needed."""
    def sample_best(self, best: NDArray[np.void]) -> int:
        """What `sample` would choose, from a row of `Context.forward_best`; only where `needed_candidates` is not 0."""
    def reseed(self, seed: int) -> None: ...

def architectures() -> list[str]:
    """Values of general.architecture that Model can run."""

def isa() -> str: ...
def available_isas() -> list[str]: ...
def backends() -> dict[str, str]:
    """Each backend's state: {"cpu": "available: ...", "cuda": "unsupported: why", "metal": ...}."""

def cpu_count() -> int:
    """Cores this process may use (affinity and cgroup limits)."""

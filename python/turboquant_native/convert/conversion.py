"""From a source to a file: the plan says how every tensor is stored, `write_model` carries it out one tensor at a time."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError, listing
from ..common.memory import MemoryWatch
from ..common.progress import Journey, Progress, duration
from ..engine.head import TENSORS as HEAD_TENSORS
from .architectures import PER_LAYER_TABLE, Shape
from .container import ContainerWriter, refusal_to_replace
from .quantize import MAX_INPUTS, MatrixSpec, QuantizedMatrix, quantize_matrix, rotation_seed
from .sources import Source

TYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_FP16_MAX = 65504.0
_BLOCK_ROWS = 4096
_EMBED_BITS = 8  # where nobody measured what fewer cost
_KEPT = (PER_LAYER_TABLE, ".per_layer_model_proj.weight", ".inp_gate.weight", ".proj.weight")  # in 16 bit unless options name them
# Rounds one matrix: (name, w, spec, progress) -> the result. Calibration passes its own.
Rounder = Callable[[str, NDArray[np.float32], MatrixSpec, Callable[[int], None]], QuantizedMatrix]


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        bits: of the layers' matrices; 16 and 32 stand for F16 and F32 everywhere.
        tensor_bits: (regular expression, bits), the last that is found in a name wins.
        embed_bits: of the embedding, and of the output matrix where `output_bits` does not say otherwise; None: 8, or what a
            calibration finds best.
        outliers: fraction of every matrix kept in FP16.
        outtype: "f32", "f16", "bf16": an unquantized file; None: quantized.
        seed: of the rotations.
    """

    bits: int = 4
    tensor_bits: tuple[tuple[str, int], ...] = ()
    embed_bits: int | None = None
    output_bits: int | None = None
    outliers: float = 0.0
    outtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        named = [(f"--tensor-bits {pattern}=", bits) for pattern, bits in self.tensor_bits]
        for option, bits in (("--bits ", self.bits), ("--embed-bits ", self.embed_bits), ("--output-bits ", self.output_bits), *named):
            if bits not in (None, *_core.FORMATS, 16, 32):
                raise ConvertError(f"{option}{bits}: choose among {', '.join(map(str, _core.FORMATS))} (16: F16, 32: F32)")
        if not 0 <= self.outliers <= 0.5:
            raise ConvertError(f"--outliers {self.outliers}: give a fraction from 0 to 0.5")


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is stored: packed as `spec` says, or unquantized as `dtype`."""

    name: str
    shape: Shape
    dtype: str = "f32"
    spec: MatrixSpec | None = None
    note: str = ""

    @property
    def weights(self) -> int:
        return int(np.prod(self.shape))

    @property
    def bytes(self) -> int:
        """In the file: all planes, scales and side tables."""
        if self.spec is None:
            return self.weights * TYPE_BYTES[self.dtype]
        n_out, n_in = self.shape
        outliers = round(self.spec.outliers * self.weights)
        return sum(_core.plane_bytes(n_out, n_in, self.spec.bits).values()) + (4 * outliers + 4 * (n_out + 1) if outliers else 0)

    @property
    def label(self) -> str:
        """`TQN3`, `F16` ..."""
        return f"TQN{self.spec.bits}" if self.spec else self.dtype.upper()

    @property
    def is_embedding(self) -> bool:
        return self.name in ("token_embd.weight", "output.weight", PER_LAYER_TABLE)


def make_plan(source: Source, options: Options) -> list[TensorPlan]:
    """The tensors in file order; ConvertError where an option matches nothing."""
    for pattern, _ in options.tensor_bits:
        if not any(_search(pattern, name) for name in source.shapes):
            raise ConvertError(f"--tensor-bits {pattern}: no tensor has such a name")
    return [_plan_tensor(name, shape, options, source.tied) for name, shape in source.shapes.items()]


def _search(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ConvertError(f"--tensor-bits {pattern}: not a regular expression: {error}") from None


def _bits_of(name: str, options: Options, tied: bool) -> int:
    bits, embed_bits = max(options.bits, 16) if name.endswith(_KEPT) else options.bits, options.embed_bits or _EMBED_BITS
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        bits = options.output_bits or embed_bits
    elif name == "token_embd.weight":
        bits = embed_bits
    for pattern, chosen in options.tensor_bits:
        bits = chosen if _search(pattern, name) else bits
    return bits


def _plan_tensor(name: str, shape: Shape, options: Options, tied: bool) -> TensorPlan:
    if len(shape) == 1 or name.endswith(
        ("ffn_gate_inp.weight", ".bias", "ssm_alpha.weight", "ssm_beta.weight", "ssm_conv1d.weight")
    ):  # norms, biases, routers, gates: small, and everything hangs on them
        return TensorPlan(name, shape)
    if name in HEAD_TENSORS:  # small, and what the model is for
        return TensorPlan(name, shape, "f32" if options.outtype == "f32" else "f16")
    if options.outtype is not None:
        return TensorPlan(name, shape, options.outtype)
    bits = _bits_of(name, options, tied)
    if name == PER_LAYER_TABLE and bits < 16:
        return TensorPlan(name, shape, "f16", note="each layer reads its own columns")
    if bits >= 16:
        return TensorPlan(name, shape, f"f{bits}")
    if shape[1] % _core.TILE_COLS or shape[1] > MAX_INPUTS:
        why = f"no multiple of {_core.TILE_COLS}" if shape[1] % _core.TILE_COLS else f"more than {MAX_INPUTS}"
        return TensorPlan(name, shape, "f16", note=f"width {shape[1]} is {why}")
    return TensorPlan(name, shape, spec=MatrixSpec(bits, rotation_seed(name, options.seed), options.outliers))


@dataclass(frozen=True)
class Summary:
    """What a conversion made. Sizes in bytes, times in seconds.

    Attributes:
        bpw: bits per weight of all tensors (the tokenizer is not counted).
        bpw_layers: of the tensors that are neither embedding nor output.
        ratio: size of the model's tensors in FP16 over theirs.
        peak_bytes: the most memory that the process held, mapped files left out.
        embedding_bytes: of embedding and output matrix.
        embedding_types: name -> how they are stored.
        notes: tensors not stored as asked, and why; what a user should know of the source.
    """

    path: str
    file_bytes: int
    parameters: int
    bpw: float
    bpw_layers: float
    ratio: float
    seconds: float
    peak_bytes: int
    embedding_bytes: int = 0
    embedding_types: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [
            f"{self.path}: {self.file_bytes / 1e6:.2f} MB, {self.parameters / 1e6:.2f} M weights",
            f"{self.bpw:.2f} bits per weight, {self.ratio:.2f} times smaller than in 16 bit: layers {self.bpw_layers:.2f} bits, "
            f"{self._embeddings()}",
            f"took {duration(self.seconds)} and {self.peak_bytes / 1e6:.0f} MB of memory",
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _embeddings(self) -> str:
        """What embedding and output take; in small models with many tokens that is most of the file."""
        words = {"token_embd.weight": "embedding", "output.weight": "output", PER_LAYER_TABLE: "per-layer embeddings"}
        types = " and ".join(f"{words[name]} {label}" for name, label in self.embedding_types.items())
        return f"{types}: {self.embedding_bytes / 1e6:.1f} MB, {self.embedding_bytes / max(self.file_bytes, 1):.0%} of the file"


def bits_per_weight(plan: Sequence[TensorPlan]) -> float:
    weights = sum(tensor.weights for tensor in plan)
    return 8 * sum(tensor.bytes for tensor in plan) / weights if weights else 0.0


def notes_of(source: Source, plan: Sequence[TensorPlan]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for tensor in plan:
        if tensor.note:
            notes.setdefault(f"{tensor.note}, kept as {tensor.label}", []).append(tensor.name)
    found = [f"{note}: {listing(names, 4)}" for note, names in notes.items()] + source.notes
    if (kind := source.quantized_as) is not None:
        found.append(
            f"the source is already quantized ({kind}): what that lost stays lost, and comes on top of this file's own loss, which is "
            f"measured from it. The original in F16 or BF16 gives a better file"
        )
    return found


def check_target(source: Source, target: Path, overwrite: bool) -> None:
    """ConvertError unless `target` may be written."""
    if not target.parent.is_dir():
        raise ConvertError(f"{target}: the folder {target.parent} does not exist")
    if target.is_file() and any(file.exists() and target.samefile(file) for file in source.stored_files()):
        raise ConvertError(f"{target}: is the source itself")
    if refusal := refusal_to_replace(target, overwrite):
        raise ConvertError(f"{target}: {refusal}")


def _check_space(target: Path, plan: Sequence[TensorPlan]) -> None:
    """Tensors are spooled, then assembled: both stand on the disk for a moment."""
    needed = 2 * sum(tensor.bytes for tensor in plan)
    spool = target.with_name(f".{target.name}.partial")
    free = shutil.disk_usage(target.parent).free + (spool.stat().st_size if spool.exists() else 0)
    if free < needed:
        raise ConvertError(f"{target}: not enough disk space: {needed / 1e6:.0f} MB needed while writing, {free / 1e6:.0f} MB free")


def check_finite(source: Source, name: str, w: NDArray[np.float32]) -> None:
    """ConvertError naming the first NaN or infinity."""
    if np.isfinite(w).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(w))[0])
    raise ConvertError(f"{source.path}: {name}{list(index)} is {w[index]}: the weights are damaged")


def fingerprint(source: Source, *settings: Any) -> str:
    """Of everything that decides the tensors' bytes: a resumed run may only go on from the same."""
    files = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in source.stored_files() if file.is_file()]
    return hashlib.sha256(json.dumps([files, *settings]).encode()).hexdigest()


def plain_rounding(threads: int = 0, device: str = "cpu") -> Rounder:
    """Rounds every weight for itself, without calibration; codes are searched on `device` ("cpu" or "cuda")."""

    def rounder(name: str, w: NDArray[np.float32], spec: MatrixSpec, progress: Callable[[int], None]) -> QuantizedMatrix:
        return quantize_matrix(w, spec, threads=threads, progress=progress, device=device)

    return rounder


def _cast(source: Source, tensor: TensorPlan, w: NDArray[np.float32]) -> NDArray[Any]:
    """w as its stored type (bf16: the bits, rounded to nearest even); ConvertError where it overflows."""
    if tensor.dtype == "f32":
        return w
    if tensor.dtype == "bf16":
        bits = w.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if (largest := float(np.abs(w).max(initial=0))) > _FP16_MAX:
        raise ConvertError(
            f"{source.path}: {tensor.name} has a weight of magnitude {largest:g}, which float16 cannot hold; use bf16 or f32"
        )
    return w.astype(np.float16)


def _cast_in_blocks(source: Source, tensor: TensorPlan) -> NDArray[Any]:
    """The same for a table of which all rows at once, in float32, would be the largest thing in memory by far."""
    types: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
    out = np.empty(tensor.shape, types[tensor.dtype])
    for first in range(0, len(out), _BLOCK_ROWS):
        block = source.read_rows(tensor.name, first, min(first + _BLOCK_ROWS, len(out)))
        check_finite(source, tensor.name, block)
        out[first : first + len(block)] = _cast(source, tensor, block)
    return out


def write_model(
    source: Source,
    plan: Sequence[TensorPlan],
    target: Path,
    *,
    rounder: Rounder | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
    extra_metadata: dict[str, Any] | None = None,
    further: Mapping[str, NDArray[np.float32]] | None = None,
    settings: str = "",
    title: str = "converting",
    journey: Journey | None = None,
) -> Summary:
    """Convert `source` to the file `target` as `plan` says; the file appears only when it is complete.

    Args:
        rounder: rounds the matrices; None: plain rounding on all cores.
        overwrite: replace an existing file.
        resume: keep finished tensors when stopped, and go on from them.
        quiet: show no progress.
        extra_metadata: further keys of the file.
        further: tensors that the source does not have.
        settings: what else decides the rounder's results: only a run with the same goes on from an interrupted one.
        title: of the progress bar.
        journey: what this is the stage `title` of.
    Raises ConvertError, OSError (no space, no permission).
    """
    start = time.monotonic()
    check_target(source, target, overwrite)
    _check_space(target, plan)
    rounder = rounder or plain_rounding()
    done = 0
    key = fingerprint(source, [repr(tensor) for tensor in plan], settings)
    with (
        MemoryWatch() as memory,
        ContainerWriter(target, source.architecture.gguf, overwrite=overwrite, key=key, resume=resume) as writer,
        Progress(sum(tensor.weights for tensor in plan), title, quiet, journey=journey) as progress,
    ):
        tokenizer = source.tokenizer.metadata() if source.tokenizer else {}
        for name, value in {**source.metadata(), **tokenizer, **(extra_metadata or {})}.items():
            writer.add_metadata(name, value)
        for tensor in plan:
            progress.at(tensor.name)
            if not writer.reuse(tensor.name):
                _write_tensor(source, tensor, writer, rounder, progress.part(done))
            done += tensor.weights
            progress.advance_to(done)
        for name, values in (further or {}).items():
            if not writer.reuse(name):
                writer.add_tensor(name, values)
        source.check_unchanged()
        size = writer.finish()
    return _summarize(source, plan, target, size, time.monotonic() - start, memory.peak)


def _write_tensor(
    source: Source,
    tensor: TensorPlan,
    writer: ContainerWriter,
    rounder: Rounder,
    progress: Callable[[int], None],
) -> None:
    if tensor.name == PER_LAYER_TABLE:
        writer.add_tensor(tensor.name, _cast_in_blocks(source, tensor), bf16=tensor.dtype == "bf16")
        return
    w = source.read(tensor.name)
    check_finite(source, tensor.name, w)
    if tensor.spec is None:
        writer.add_tensor(tensor.name, _cast(source, tensor, w), bf16=tensor.dtype == "bf16")
        return
    rounder(tensor.name, w, tensor.spec, progress).add_to(writer, tensor.name)


def _summarize(source: Source, plan: Sequence[TensorPlan], target: Path, size: int, seconds: float, peak: int) -> Summary:
    layers, bpw = [tensor for tensor in plan if not tensor.is_embedding], bits_per_weight(plan)
    embeddings = [tensor for tensor in plan if tensor.is_embedding]
    return Summary(
        path=str(target),
        file_bytes=size,
        parameters=source.parameters,
        bpw=bpw,
        bpw_layers=bits_per_weight(layers),
        ratio=16 / bpw if bpw else 0.0,
        seconds=seconds,
        peak_bytes=peak,
        embedding_bytes=sum(tensor.bytes for tensor in embeddings),
        embedding_types={tensor.name: tensor.label for tensor in embeddings},
        notes=notes_of(source, plan),
    )


def _row(tensor: TensorPlan, width: int) -> str:
    shape, bits = " x ".join(map(str, tensor.shape)), 8 * tensor.bytes / tensor.weights
    return f"{tensor.name:{width}}  {shape:>16}  {tensor.label:>5}  {bits:7.3f}  {tensor.bytes:>12,}  {tensor.note}".rstrip()


def plan_table(source: Source, plan: Sequence[TensorPlan]) -> str:
    """The plan as a text table with totals."""
    width = max(len(tensor.name) for tensor in plan)
    head = f"{'tensor':{width}}  {'shape':>16}  {'type':>5}  {'bits/w':>7}  {'bytes':>12}"
    rows = [_row(tensor, width) for tensor in plan]
    total = sum(tensor.bytes for tensor in plan)
    foot = (
        f"{len(plan)} tensors, {source.parameters / 1e6:.2f} M weights, {total / 1e6:.2f} MB, {bits_per_weight(plan):.3f} bits per weight, "
        f"{2 * source.parameters / total:.2f} x smaller than FP16"
    )
    return "\n".join([head, *rows, foot])

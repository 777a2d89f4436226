"""Looking at model files without running them: `verify` finds damage and names it, `describe` lists what is inside."""

from __future__ import annotations

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from gguf import GGMLQuantizationType

from .._core import FormatError, GgufFile, UnsupportedError, cpu_count
from ..engine.cache_types import KEY_STATISTICS
from .architectures import PER_LAYER_TABLE
from .container import CALIBRATION_KEY, CHECKSUMS_KEY, HEADER_KEY, PLANE_SUFFIXES, header_digest

EMBEDDINGS = ("token_embd.weight", "output.weight")
DEFAULT_ALIGNMENT = 32  # GGUF's, where a file names none


@dataclass(frozen=True)
class Verification:
    """What `verify` found. problems: one sentence each, naming the tensor (or the header); empty: the file is whole."""

    path: str
    size: int
    tensors: int  # as `describe` counts them: a packed matrix is one
    planes: int  # GGUF tensors that they are stored as: a packed matrix is three to six
    checksummed: int  # planes that a checksum covers; 0: the file has none, so only its structure was checked
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(path: str | os.PathLike[str], threads: int = 0) -> Verification:
    """Checks structure, header, every tensor's SHA-256, padding and the rules of packed matrices. Never raises for a damaged file.

    Raises OSError where the file cannot be read.
    """
    path = os.fspath(path)
    try:
        file = GgufFile(path, validate=False)
    except (FormatError, UnsupportedError) as error:
        return Verification(path, os.path.getsize(path), 0, 0, 0, [str(error)])
    problems, checksums = _header_problems(file, path)
    names = [name for name, _, _ in file.tensors()]
    with ThreadPoolExecutor(threads or cpu_count()) as pool:
        digests = list(pool.map(lambda name: hashlib.sha256(_bytes(file, name)).hexdigest(), names if checksums else []))
    for name, digest in zip(names, digests, strict=False):
        if checksums.get(name) is None:
            problems.append(f"tensor {name}: has no checksum")
        elif checksums[name] != digest:
            problems.append(f"tensor {name}: its data is damaged (SHA-256 {digest}, recorded {checksums[name]})")
    problems += [f"tensor {name}: is missing, its checksum is there" for name in checksums if name not in set(names)]
    problems += _padding_problems(file, path) if checksums else []
    try:
        file.quantized()
    except (FormatError, UnsupportedError) as error:
        problems.append(str(error))
    tensors = len({_matrix_name(name) for name in names})
    return Verification(path, file.size, tensors, len(names), sum(name in checksums for name in names), problems)


def _matrix_name(plane: str) -> str:
    """ "blk.3.ffn_up.weight" of its planes "blk.3.ffn_up.weight.tqn", ...; other tensors are their own only plane."""
    matrix, dot, suffix = plane.rpartition(".")
    return matrix if dot + suffix in PLANE_SUFFIXES else plane


def _bytes(file: GgufFile, name: str) -> memoryview:
    return file.data(name).reshape(-1).view(np.uint8).data


def _header_problems(file: GgufFile, path: str) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with the header, and the checksums of the tensors that it records."""
    recorded = file.metadata.get(CHECKSUMS_KEY)
    if recorded is None and HEADER_KEY not in file.metadata:
        return [], {}
    with open(path, "rb") as stream:
        digest, _ = header_digest(stream.read(file.data_offset))
    problems = [] if digest and digest == file.metadata.get(HEADER_KEY) else ["header: damaged (its SHA-256 is not the recorded one)"]
    try:
        checksums = json.loads(recorded) if isinstance(recorded, str) else None
    except ValueError:
        checksums = None
    if not isinstance(checksums, dict):
        return [*problems, f"header: {CHECKSUMS_KEY} is not a JSON object"], {}
    return problems, checksums


def _padding_problems(file: GgufFile, path: str) -> list[str]:
    """Bytes that belong to no tensor must be zeros: between tensors, and up to the alignment after the last, where the file ends."""
    alignment = file.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    places = sorted((offset, size, f"tensor {name}") for name, offset, size in file.places())
    ends = [(offset + size, owner) for offset, size, owner in places] or [(file.data_offset, "the header")]
    data_end = -(-ends[-1][0] // alignment) * alignment
    gaps = zip([(file.data_offset, "the header"), *ends], [*(offset for offset, _, _ in places), min(data_end, file.size)], strict=False)
    with open(path, "rb") as stream:
        problems = [f"padding after {owner}: damaged" for (start, owner), stop in gaps if any(_read(stream, start, stop))]
    if extra := file.size - data_end:
        what = f"{extra} bytes more than the tensors need" if extra > 0 else f"{-extra} bytes of padding are missing"
        problems.append(f"end of file: {what}")
    return problems


def _read(stream: IO[bytes], start: int, stop: int) -> bytes:
    stream.seek(start)
    return stream.read(max(0, stop - start))


@dataclass(frozen=True)
class TensorSummary:
    """One row of the table: a packed matrix with all its planes, or an ordinary tensor."""

    name: str
    type: str  # "TQN3", "F32", ...
    shape: tuple[int, ...]  # NumPy order
    bytes: int  # of all planes
    outliers: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.elements


@dataclass(frozen=True)
class FileSummary:
    """What `describe` returns. Parameters and bits per weight count all tensors (codes, scales, codebooks, outliers, norms) but what a file
    says of its layers' keys, and not the tokenizer."""

    path: str
    architecture: str
    size: int  # bytes of the whole file
    tensors: list[TensorSummary]

    @property
    def key_statistics(self) -> list[TensorSummary]:
        """Means and balances of keys, for caches in codes (docs/format.md)."""
        return [tensor for tensor in self.tensors if KEY_STATISTICS in tensor.name]

    @property
    def weights(self) -> list[TensorSummary]:
        """All others."""
        return [tensor for tensor in self.tensors if KEY_STATISTICS not in tensor.name]

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.weights)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def outliers(self) -> int:
        return sum(tensor.outliers for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return _bits_per_weight(self.weights)

    @property
    def bits_per_weight_without_embeddings(self) -> float:
        return _bits_per_weight([tensor for tensor in self.weights if tensor.name not in (*EMBEDDINGS, PER_LAYER_TABLE)])


def _bits_per_weight(tensors: list[TensorSummary]) -> float:
    elements = sum(tensor.elements for tensor in tensors)
    return 8 * sum(tensor.bytes for tensor in tensors) / elements if elements else 0.0


def _path_of(file: GgufFile) -> str:
    try:
        return file.path
    except UnicodeDecodeError as error:  # a path that is no UTF-8
        return os.fsdecode(error.object)


def describe(path: str | os.PathLike[str] | GgufFile) -> FileSummary:
    """The table of a file's tensors, in file order. Raises FormatError for a damaged file, OSError where it cannot be read."""
    file = path if isinstance(path, GgufFile) else GgufFile(path)
    sizes = {name: size for name, _, size in file.places()}
    packed = file.quantized()
    rows = []
    for name, type_number, shape in file.tensors():
        matrix, dot, suffix = name.rpartition(".")
        if matrix not in packed or dot + suffix not in PLANE_SUFFIXES:
            rows.append(TensorSummary(name, GGMLQuantizationType(type_number).name, shape, sizes[name], 0))
        elif dot + suffix == PLANE_SUFFIXES[0]:
            entry = packed[matrix]
            size = sum(sizes.get(matrix + plane, 0) for plane in PLANE_SUFFIXES)
            rows.append(TensorSummary(matrix, f"TQN{entry['bits']}", (entry["n_out"], entry["n_in"]), size, entry["outliers"]))
    return FileSummary(_path_of(file), str(file.metadata.get("general.architecture", "unknown")), file.size, rows)


def measured_kld(file: GgufFile) -> float | None:
    """Nats a token from the original, as the conversion measured it on held-out text; None where the file does not say."""
    try:
        value = float(json.loads(file.metadata.get(CALIBRATION_KEY, ""))["kld"])
    except (ValueError, TypeError, KeyError):
        return None
    return value if math.isfinite(value) and value >= 0 else None

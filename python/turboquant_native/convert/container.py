"""Writing model files: tensor by tensor, with a checksum each, so that a crash leaves the old file or the new one, never half of one.

Tensors are appended to a spool beside the target (`.NAME.partial`) and journaled (`.NAME.partial.journal`) as they are produced, so that
memory holds one tensor at a time and a conversion that was killed goes on where it stopped. `finish` puts header and data together in a
third file, flushes it to the disk and renames it over the target. docs/format.md has the layout, docs/reliability.md what is checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from .. import __version__
from .._core import FORMAT_VERSION, TILE_ROWS, GgufFile
from ..common.system import CAN_REMOVE_OPEN_FILES, OPEN_PLAIN_FILE, lock_file, sync_folder

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # of every plane in the file: a cache line
MAX_NAME_BYTES = 63
VERSION_KEY = "turboquant.version"
TENSORS_KEY = "turboquant.tensors"
CHECKSUMS_KEY = "turboquant.checksums"  # JSON: tensor name -> SHA-256 of its data, hexadecimal
CALIBRATION_KEY = "turboquant.calibration"  # JSON with spaces behind it: what was measured of the file; for information only
HEADER_KEY = "turboquant.header_sha256"  # SHA-256 of everything before the data, taken with this value as 64 zeros
PLANE_SUFFIXES = (".tqn", ".tqn_scale", ".tqn_cb", ".tqn_out_ptr", ".tqn_out_col", ".tqn_out_val")  # of a packed matrix, in file order
JOURNAL_VERSION = 1
CALIBRATION_ROOM = " " * 240  # the value of CALIBRATION_KEY until `fill_calibration` writes into it

_TYPES = {
    np.dtype(np.float32): GGMLQuantizationType.F32,
    np.dtype(np.float16): GGMLQuantizationType.F16,
    np.dtype(np.int8): GGMLQuantizationType.I8,
    np.dtype(np.int16): GGMLQuantizationType.I16,
    np.dtype(np.int32): GGMLQuantizationType.I32,
}


class OutputError(OSError):
    """The file cannot be written; the message names it and says why (no space, no permission, ...)."""


class PackedMatrix(Protocol):
    """What `_core.encode` returns."""

    @property
    def bits(self) -> int: ...
    @property
    def n_out(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def codes(self) -> NDArray[np.uint8]: ...
    @property
    def row_scale(self) -> NDArray[np.float16]: ...
    @property
    def codebook(self) -> NDArray[np.int8]: ...


@dataclass(frozen=True)
class StoredMatrix:
    """A PackedMatrix of given parts."""

    bits: int
    n_out: int
    n_in: int
    scale: float
    codes: NDArray[np.uint8]
    row_scale: NDArray[np.float16]
    codebook: NDArray[np.int8]


@dataclass(frozen=True)
class Outliers:
    """FP16 outliers in the original basis, compressed rows: `val[i]` stands in column `col[i]`, row r owns ptr[r] .. ptr[r + 1]."""

    ptr: NDArray[np.int32]  # (n_out + 1,)
    col: NDArray[np.uint16]  # (count,), increasing within a row
    val: NDArray[np.float16]  # (count,)


@dataclass(frozen=True)
class _Plane:
    """One GGUF tensor in the spool."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class _Record:
    """One line of the journal: a tensor, or a matrix with its planes and its entry in `turboquant.tensors`."""

    name: str
    planes: list[_Plane]
    entry: dict[str, Any] | None

    def line(self) -> bytes:
        """For the journal: a digest of what follows, and the record as JSON."""
        text = json.dumps(asdict(self)).encode()
        return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"

    @staticmethod
    def from_line(line: bytes) -> _Record | None:
        """None where the line was cut or damaged."""
        digest, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or hashlib.sha256(text).hexdigest().encode() != digest:
            return None
        data = json.loads(text)
        planes = [_Plane(**{**plane, "shape": tuple(plane["shape"])}) for plane in data["planes"]]
        return _Record(data["name"], planes, data["entry"])


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Any OSError inside becomes an OutputError that names the file."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            why = f"no space left on the device ({shutil.disk_usage(path.parent).free} bytes free)"
        raise OutputError(error.errno or errno.EIO, f"cannot write {path}: {why}") from error


@contextlib.contextmanager
def _warning(what: str) -> Iterator[None]:
    """An OSError inside is logged: the model file is in place already, and nothing that follows can take it back."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: %s", what, error.strerror or error)


def refusal_to_replace(path: Path, overwrite: bool) -> str | None:
    """Why a file must not be written at `path`; None where it may. Only a regular file, or a link, is ever replaced."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode) or path.is_dir():
        return "is a folder; name a file"
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) or (path.exists() and not path.is_file()):
        return "is no regular file, so it is not replaced"
    return None if overwrite else "exists already (--overwrite replaces it)"


def _open_own(path: Path) -> IO[bytes]:
    """A working file for reading and writing, without emptying it. What somebody else may have put there is refused: a link, a second name
    of another file, a FIFO."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | OPEN_PLAIN_FILE, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(errno.ELOOP, f"cannot write {path}: it is a link; remove it") from None
        raise
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        os.close(fd)
        raise OutputError(errno.EEXIST, f"cannot write {path}: it is no regular file of its own; remove it")
    return open(fd, "r+b")


def _open_locked(path: Path, target: Path) -> IO[bytes]:
    """The working file, open for this process alone. A writer that ends removes its file: whoever opened that one before locks an orphan,
    and tries again."""
    while True:
        stream = _open_own(path)
        try:
            lock_file(stream.fileno(), wait=False)
            if _is_file_at(stream, path):
                return stream
        except BlockingIOError:
            stream.close()
            raise OutputError(errno.EAGAIN, f"cannot write {target}: another process is writing it") from None
        except BaseException:
            stream.close()
            raise
        stream.close()


def _is_file_at(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


class _Spool:
    """The finished tensors on disk, and the journal that says which they are. Both files belong to one process at a time."""

    def __init__(self, target: Path, key: str, resume: bool) -> None:
        self.path = target.with_name(f".{target.name}.partial")
        self.journal_path = target.with_name(f".{target.name}.partial.journal")
        self.records: dict[str, _Record] = {}
        with contextlib.ExitStack() as undo:
            if not resume:
                undo.callback(self._remove_unless_in_use, target)
            self._data = undo.enter_context(_open_locked(self.path, target))
            self._journal = undo.enter_context(_open_own(self.journal_path))
            self._load(key, resume)
            undo.pop_all()

    def _load(self, key: str, resume: bool) -> None:
        """Takes over what an earlier run of this release with the same key finished, up to the first incomplete or damaged record."""
        head = json.dumps({"version": JOURNAL_VERSION, "library": __version__, "key": key}).encode() + b"\n"
        lines = self._journal.read().splitlines(keepends=True) if resume else []
        data_end, journal_end = 0, len(head)
        for line in lines[1:] if lines and lines[0] == head else []:
            record = _Record.from_line(line)
            if record is None or not all(self._is_whole(plane) for plane in record.planes):
                break
            self.records[record.name] = record
            data_end = max([data_end, *(plane.offset + plane.size for plane in record.planes)])
            journal_end += len(line)
        self._data.truncate(data_end)
        self._journal.seek(0)
        self._journal.write(head)
        self._journal.truncate(journal_end)
        self._journal.seek(journal_end)
        self._journal.flush()

    def _is_whole(self, plane: _Plane) -> bool:
        digest = hashlib.sha256()
        for chunk in self.read(plane):
            digest.update(chunk)
        return digest.hexdigest() == plane.sha256

    def read(self, plane: _Plane, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        self._data.seek(plane.offset)
        left = plane.size
        while left and (chunk := self._data.read(min(left, chunk_bytes))):
            left -= len(chunk)
            yield chunk

    def add(self, name: str, planes: list[tuple[str, NDArray[Any], int]], entry: dict[str, Any] | None) -> None:
        """planes: (tensor name, array, GGML type number). The record exists once its line is in the journal."""
        self._data.seek(0, os.SEEK_END)
        written = [self._write(*plane) for plane in planes]
        self._data.flush()
        self.records[name] = record = _Record(name, written, entry)
        self._journal.write(record.line())
        self._journal.flush()

    def _write(self, name: str, array: NDArray[Any], type_number: int) -> _Plane:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        offset = self._data.tell()
        self._data.write(data)
        return _Plane(name, type_number, array.shape, offset, data.nbytes, hashlib.sha256(data).hexdigest())

    def close(self, remove: bool) -> None:
        try:
            if remove and CAN_REMOVE_OPEN_FILES:  # under the lock, so that no other writer loses its file
                self._remove()
        finally:
            # After an error (a full disk) the buffers cannot be flushed, and need not be.
            for stream in (self._journal, self._data):
                with contextlib.suppress(OSError):
                    stream.close()
        if remove and not CAN_REMOVE_OPEN_FILES:
            with contextlib.suppress(PermissionError):  # the next writer has them open already
                self._remove()

    def _remove_unless_in_use(self, target: Path) -> None:
        """Undoes the beginning, wherever it was interrupted."""
        with contextlib.suppress(OSError), _open_locked(self.path, target):
            self._remove()

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.journal_path.unlink(missing_ok=True)


class ContainerWriter:
    """Writes one model file; use it as a context manager. Leaving without `finish`, by an exception or not, leaves the target as it was.

        with ContainerWriter("model.tqn.gguf", "llama", key=fingerprint, resume=True) as out:
            out.add_metadata("llama.block_count", 30)
            out.add_tensor("output_norm.weight", norm)
            if not out.reuse("blk.0.attn_q.weight"):
                out.add_quantized("blk.0.attn_q.weight", encode(...), seed=7, rotation="hartley-hadamard")
            out.finish()

    Tensors stand in the file in the order of the calls (`reuse` counts), so that a resumed run writes the bytes of an uninterrupted one.

    path: the target. architecture: GGUF's name, "llama". overwrite: replace an existing file. key: fingerprint of source and settings;
    finished tensors are taken over only from a run of this release with the same key. resume: take over finished tensors, and keep them
    when this run fails too; without it an error or KeyboardInterrupt removes them (a kill cannot: the next run does).

    Raises FileExistsError, OutputError (an OSError: no space, no permission, another writer), ValueError (names, shapes, types).
    """

    def __init__(
        self, path: str | os.PathLike[str], architecture: str, *, overwrite: bool = False, key: str = "", resume: bool = False
    ) -> None:
        self.path = Path(path)
        self.architecture = architecture
        self._resume = resume
        self._metadata: dict[str, tuple[Any, GGUFValueType]] = {}
        self._order: list[str] = []
        if refusal := refusal_to_replace(self.path, overwrite):
            raise FileExistsError(errno.EEXIST, refusal, str(self.path))
        self._assembly = self.path.with_name(f".{self.path.name}.partial.out")
        with _naming(self.path):
            self._spool: _Spool | None = _Spool(self.path, key, resume)

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(remove=not self._resume)

    def _close(self, remove: bool) -> None:
        if self._spool is not None:
            with _warning(f"{self._assembly} cannot be removed"):
                self._assembly.unlink(missing_ok=True)
            with _warning(f"{self._spool.path} and its journal cannot be removed"):
                self._spool.close(remove)
            self._spool = None

    @property
    def _open_spool(self) -> _Spool:
        if self._spool is None:
            raise ValueError(f"the writer of {self.path} is closed")
        return self._spool

    def add_metadata(self, key: str, value: Any, kind: GGUFValueType | None = None) -> None:
        """Sets a metadata key: bool, int (uint32; int32 when negative; 64 bits when larger), float (float32), str, a list of one of
        these, or bytes (an array of uint8). `kind` overrides the type of a scalar. An array must not be empty."""
        if isinstance(value, (np.generic, np.ndarray)):
            value = value.tolist()
        if isinstance(value, (list, tuple, bytes)) and not value:
            raise ValueError(f"metadata {key}: GGUF has no empty arrays")
        self._metadata[key] = (_storable(value), kind or _metadata_type(key, value))

    def reuse(self, name: str) -> bool:
        """True where an earlier run, or this one, has finished the tensor or matrix: it is in the file and need not be computed."""
        if name not in self._open_spool.records:
            return False
        if name not in self._order:
            self._order.append(name)
        return True

    def add_tensor(self, name: str, array: NDArray[Any], *, bf16: bool = False) -> None:
        """An ordinary tensor: float32, float16, int8, int16 or int32; with bf16=True uint16, the bits of bfloat16 values."""
        if bf16 != (array.dtype == np.uint16):
            raise ValueError(f"tensor {name}: bfloat16 is given as uint16 with bf16=True, not as {array.dtype}")
        if not bf16 and array.dtype not in _TYPES:
            raise ValueError(f"tensor {name}: the type {array.dtype} cannot be stored")
        type_number = GGMLQuantizationType.BF16 if bf16 else _TYPES[array.dtype]
        self._add(name, [(name, array, int(type_number))], None)

    def add_quantized(self, name: str, packed: PackedMatrix, *, rotation: str, seed: int, outliers: Outliers | None = None) -> None:
        """A packed matrix. rotation: "hartley-hadamard" or "none"; seed: of its signs, 0 <= seed < 2**64."""
        if rotation not in ("hartley-hadamard", "none"):
            raise ValueError(f"matrix {name}: unknown rotation {rotation!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"matrix {name}: the seed {seed} does not fit 64 bits")
        entry = {
            "bits": int(packed.bits),
            "n_out": int(packed.n_out),
            "n_in": int(packed.n_in),
            "scale": float(packed.scale),
            "rotation": rotation,
            "seed": str(seed),
            "outliers": 0 if outliers is None else int(outliers.val.size),
        }
        planes = [(name + suffix, array, int(_TYPES[array.dtype])) for suffix, array in _planes(packed, outliers).items()]
        self._add(name, planes, entry)

    def _add(self, name: str, planes: list[tuple[str, NDArray[Any], int]], entry: dict[str, Any] | None) -> None:
        if name in self._order:
            raise ValueError(f"tensor {name} was added twice")
        for plane, array, _ in planes:
            if len(plane.encode()) > MAX_NAME_BYTES:
                raise ValueError(f"tensor {plane}: the name is longer than {MAX_NAME_BYTES} bytes")
            if array.size == 0 or not 1 <= array.ndim <= 4:
                raise ValueError(f"tensor {plane}: the shape {array.shape} cannot be stored")
        if not self.reuse(name):
            with _naming(self.path):
                self._open_spool.add(name, planes, entry)
            self._order.append(name)

    def finish(self) -> int:
        """Puts the file together and in place, on the disk; removes the spool. Returns its size in bytes."""
        spool = self._open_spool
        records = [spool.records[name] for name in self._order]
        with _naming(self.path):
            self._assemble(records)
            size = self._assembly.stat().st_size
            if refusal := refusal_to_replace(self.path, overwrite=True):  # it may have come there meanwhile
                raise OutputError(errno.EEXIST, f"cannot write {self.path}: {refusal}")
            os.replace(self._assembly, self.path)
        with _warning(f"{self.path} is written, but the system did not confirm that its name is on the disk"):
            sync_folder(self.path.parent)
        self._close(remove=True)
        return size

    def _assemble(self, records: list[_Record]) -> None:
        planes = [plane for record in records for plane in record.planes]
        self._assembly.unlink(missing_ok=True)
        # Made here, because GGUFWriter would follow a link that somebody has put there.
        os.close(os.open(self._assembly, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_PLAIN_FILE, 0o644))
        writer = GGUFWriter(self._assembly, self.architecture)
        try:
            self._write_header(writer, records, planes)
            assert writer.fout is not None
            out = writer.fout[0]
            writer.write_padding(out, out.tell())
            header_bytes = out.tell()
            for plane in planes:
                for chunk in self._open_spool.read(plane):
                    out.write(chunk)
                writer.write_padding(out, plane.size)
            out.flush()
            _seal_header(self._assembly, header_bytes)
            os.fsync(out.fileno())
        finally:
            writer.close()

    def _write_header(self, writer: GGUFWriter, records: list[_Record], planes: list[_Plane]) -> None:
        writer.add_custom_alignment(ALIGNMENT)
        for key, (value, kind) in self._metadata.items():
            if key not in ("general.architecture", "general.alignment"):  # the writer's own
                writer.add_key_value(key, value, kind)
        packed = {record.name: record.entry for record in records if record.entry is not None}
        if packed:
            writer.add_uint32(VERSION_KEY, FORMAT_VERSION)
            writer.add_string(TENSORS_KEY, json.dumps(packed))
        writer.add_string(CHECKSUMS_KEY, json.dumps({plane.name: plane.sha256 for plane in planes}))
        writer.add_string(HEADER_KEY, "0" * 64)
        for plane in planes:
            # A raw type takes the shape as it is; NumPy has no bfloat16, so the dtype given beside it means nothing.
            writer.add_tensor_info(plane.name, plane.shape, np.dtype(np.int8), plane.size, raw_dtype=GGMLQuantizationType(plane.type))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()


def _planes(packed: PackedMatrix, outliers: Outliers | None) -> dict[str, NDArray[Any]]:
    """Suffix -> array, in file order, with the shapes that docs/format.md gives."""
    strips = packed.row_scale.size // TILE_ROWS
    codes = np.ascontiguousarray(packed.codes).view(np.int8).reshape(strips, -1)
    arrays: list[NDArray[Any]] = [codes, packed.row_scale, packed.codebook]
    if outliers is not None:
        arrays += [outliers.ptr, np.ascontiguousarray(outliers.col).view(np.int16), outliers.val]
    present = 3 if outliers is None or outliers.val.size == 0 else 6
    return {suffix: array for suffix, array in zip(PLANE_SUFFIXES, arrays[:present], strict=False) if array.size}


def _metadata_type(key: str, value: Any) -> GGUFValueType:
    if isinstance(value, (list, tuple, bytes)):
        return GGUFValueType.ARRAY
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        wide = not -(2**31) <= value < 2**32
        if value < 0:
            return GGUFValueType.INT64 if wide else GGUFValueType.INT32
        return GGUFValueType.UINT64 if wide else GGUFValueType.UINT32
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    if isinstance(value, str):
        return GGUFValueType.STRING
    raise ValueError(f"metadata {key}: a {type(value).__name__} cannot be stored")


def _storable(value: Any) -> Any:
    """Strings as bytes: token texts read from another file may be no valid UTF-8 (they carry surrogate escapes)."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    return value


def header_digest(header: bytes) -> tuple[str, int]:
    """SHA-256 of a header with the digest's own value as zeros, and where that value stands (-1: nowhere)."""
    at = header.rfind(HEADER_KEY.encode())
    start = at + len(HEADER_KEY) + 4 + 8  # the value type and the string's length stand between
    if at < 0 or start + 64 > len(header):
        return "", -1
    return hashlib.sha256(header[:start] + b"0" * 64 + header[start + 64 :]).hexdigest(), start


def _seal_header(path: Path, header_bytes: int) -> None:
    with open(path, "r+b") as file:
        digest, start = header_digest(file.read(header_bytes))
        file.seek(start)
        file.write(digest.encode())


def fill_calibration(path: Path, figures: dict[str, Any]) -> None:
    """Writes what was measured of a complete file into its header, over the value CALIBRATION_ROOM of CALIBRATION_KEY.

    Raises ValueError where the file has no such value or the figures are longer.
    """
    text = json.dumps(figures).encode()
    header_bytes = int(GgufFile(path).data_offset)
    with open(path, "r+b") as file:
        at = file.read(header_bytes).rfind(CALIBRATION_KEY.encode())  # behind the tokenizer's keys, whose texts may hold anything
        if at < 0 or len(text) > len(CALIBRATION_ROOM):
            raise ValueError(f"{path}: no room for {len(text)} bytes of figures in its header")
        file.seek(at + len(CALIBRATION_KEY) + 4 + 8)  # the value type and the string's length stand between
        file.write(text.ljust(len(CALIBRATION_ROOM)))
    _seal_header(path, header_bytes)
    with open(path, "rb") as file:
        os.fsync(file.fileno())

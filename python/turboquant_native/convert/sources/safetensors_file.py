"""Tensors of safetensors files without torch: BF16 has no NumPy type, so its bits are widened here."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ...common.errors import ConvertError
from ...common.files import is_present
from ..architectures import Shape

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class SafetensorsFile:
    """One memory-mapped file.

    Attributes:
        shapes: name to shape of every tensor.
    """

    def __init__(self, path: Path) -> None:
        if not is_present(path):
            raise ConvertError(f"{path}: no such file")
        try:
            with safe_open(path, framework="numpy"):  # the library checks the header: sizes, overlaps, bounds
                pass
        except (SafetensorError, OSError) as error:
            raise ConvertError(f"{path}: not a readable safetensors file: {error}") from None
        self.path = path
        with path.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        self._start = 8 + header_bytes
        self._entries = header
        self.shapes: dict[str, Shape] = {name: tuple(entry["shape"]) for name, entry in header.items()}

    def read(self, name: str, expert: int | None = None, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A tensor, or one slice of its first dimension (`expert`), or rows [start, stop) of that, as float32."""
        entry = self._entries[name]
        if entry["dtype"] not in _TYPES:
            raise ConvertError(f"{self.path}: {name} has type {entry['dtype']}; supported: {', '.join(_TYPES)}")
        dtype = np.dtype(_TYPES[entry["dtype"]])
        if not np.prod(entry["shape"]):
            return np.zeros(entry["shape"], np.float32)
        offset = self._start + entry["data_offsets"][0]
        stored: NDArray[Any] = np.memmap(self.path, dtype, "r", offset, tuple(entry["shape"]))
        if expert is not None:
            stored = stored[expert]
        if rows is not None:
            stored = stored[rows[0] : rows[1]]
        return widen_bf16(stored) if entry["dtype"] == "BF16" else np.array(stored, np.float32)


def widen_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bit patterns as float32: they are its upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

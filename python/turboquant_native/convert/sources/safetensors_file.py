"""Tensors of safetensors files without torch: BF16 has no NumPy type, so its bits are widened here."""

import functools
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
FP8 = ("F8_E4M3", "F8_E5M2")  # only with their scales
_BYTES = {"U8": np.uint8, "F8_E8M0": np.uint8, **dict.fromkeys(FP8, np.uint8)}


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

    def dtype(self, name: str) -> str:
        """The tensor's type, as the file names it."""
        return str(self._entries[name]["dtype"])

    def read(self, name: str, expert: int | None = None, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A tensor, or one slice of its first dimension (`expert`), or rows [start, stop) of that, as float32."""
        stored, kind = self.raw(name, expert, rows), self.dtype(name)
        if kind == "BF16":
            return widen_bf16(stored)
        if kind in FP8 or kind == "F8_E8M0":
            return _values_of_bytes(kind)[stored]
        return np.array(stored, np.float32)

    def raw(self, name: str, expert: int | None = None, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """The same as it is stored: BF16 as uint16, eight-bit types as uint8."""
        entry = self._entries[name]
        if entry["dtype"] not in (*_TYPES, *_BYTES):
            raise ConvertError(f"{self.path}: {name} has type {entry['dtype']}; supported: {', '.join(_TYPES)}")
        dtype = np.dtype({**_TYPES, **_BYTES}[entry["dtype"]])
        if not np.prod(entry["shape"]):
            return np.zeros(entry["shape"], dtype)
        offset = self._start + entry["data_offsets"][0]
        # a scalar is mapped as one number
        stored: NDArray[Any] = np.memmap(self.path, dtype, "r", offset, tuple(entry["shape"]) or (1,)).reshape(entry["shape"])
        if expert is not None:
            stored = stored[expert]
        return stored if rows is None else stored[rows[0] : rows[1]]


@functools.cache
def _values_of_bytes(kind: str) -> NDArray[np.float32]:
    """The 256 numbers of an eight-bit type (OCP's formats)."""
    codes = np.arange(256)
    if kind == "F8_E8M0":
        return np.where(codes == 255, np.nan, np.ldexp(np.float64(1), codes - 127)).astype(np.float32)
    mantissa_bits, bias = (3, 7) if kind == "F8_E4M3" else (2, 15)
    exponent, mantissa = (codes & 127) >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    values[(codes & 127 == 127) if kind == "F8_E4M3" else (exponent == 31)] = np.nan  # E5M2's infinities make no weights either
    return np.where(codes >= 128, -values, values).astype(np.float32)


def widen_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bit patterns as float32: they are its upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

"""The tensors of a folder's safetensors files as numbers, whatever they were stored in: also FP8 with scales of blocks, and MXFP4."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConvertError
from ..architectures import Shape
from ..fields import refused, shown
from .safetensors_file import FP8, SafetensorsFile

_METHODS = ("fp8", "mxfp4")
_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"
_IGNORED = (".activation_scale", ".input_scale")  # of activations: here they are not rounded to FP8
_MX_BLOCK = 32
# MXFP4's sixteen values (E2M1).
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Stored:
    """A tensor: its shape as numbers, the file that holds it, and how it is packed there ("", "fp8" or "mxfp4")."""

    shape: Shape
    file: SafetensorsFile
    packing: str = ""


class StoredTensors:
    """All tensors of a folder.

    Args:
        origin: config.json, for messages. quantization: its quantization_config, empty where there is none.
        files: every stored tensor's file.

    Attributes:
        shapes: of the tensors as numbers, without those that only scale others. MXFP4's are (experts, inputs, outputs), as such models
            are stored unquantized.
        quantized_as: "FP8", "MXFP4"; None where nothing is packed.
    """

    def __init__(self, origin: str, quantization: Mapping[str, Any], files: Mapping[str, SafetensorsFile]) -> None:
        self._files, self._origin = files, origin
        method = quantization.get("quant_method")
        if quantization and method not in _METHODS:
            kind = shown(method or "unknown method").strip("'")
            raise ConvertError(
                f"{origin}: the checkpoint is already quantized (quantization_config: {kind}); convert the original one "
                f"(of quantized ones {' and '.join(_METHODS)} can be read)"
            )
        self._block = _block_size(origin, quantization)
        self._stored = {name: self._describe(name, file) for name, file in files.items() if not self._only_scales(name)}
        self._stored = {name.removesuffix(_BLOCKS) if found.packing == "mxfp4" else name: found for name, found in self._stored.items()}
        self.shapes = {name: found.shape for name, found in self._stored.items()}
        kinds = sorted({found.packing.upper() for found in self._stored.values() if found.packing})
        self.quantized_as = " and ".join(kinds) or None

    def _only_scales(self, name: str) -> bool:
        scaled = name.removesuffix(_SCALE) if name.endswith(_SCALE) else name.removesuffix(_SCALES) + _BLOCKS
        return name.endswith(_IGNORED) or (name.endswith((_SCALE, _SCALES)) and scaled in self._files)

    def _describe(self, name: str, file: SafetensorsFile) -> Stored:
        shape = file.shapes[name]
        if file.dtype(name) in FP8:
            self._check_scale(name, shape)
            return Stored(shape, file, "fp8")
        scales = name.removesuffix(_BLOCKS) + _SCALES
        if not name.endswith(_BLOCKS) or scales not in self._files:
            return Stored(shape, file)
        found = self._files[scales].shapes[scales]
        if len(shape) != 4 or shape[3] != _MX_BLOCK // 2 or found != shape[:3]:
            raise ConvertError(
                f"{self._origin}: {name} is {shape} with scales {found}, expected (experts, rows, blocks, 16) and one for each block"
            )
        for each in (name, scales):
            if self._files[each].dtype(each) != "U8":
                raise ConvertError(f"{file.path}: {each} has type {self._files[each].dtype(each)}, expected U8")
        return Stored((shape[0], shape[2] * _MX_BLOCK, shape[1]), file, "mxfp4")

    def _check_scale(self, name: str, shape: Shape) -> None:
        scale = name + _SCALE
        if scale not in self._files:
            raise ConvertError(f"{self._origin}: {name} is FP8, but there is no {scale}")
        found = self._files[scale].shapes[scale]
        if len(found) < 2 and int(np.prod(found)) == 1:
            return
        expected = (*shape[:-2], *(-(-n // block) for n, block in zip(shape[-2:], self._block or (0, 0), strict=False) if block))
        if self._block is None or len(shape) < 2 or found != expected:
            blocks = f"weight_block_size {list(self._block)}" if self._block else "no weight_block_size"
            raise ConvertError(f"{self._origin}: {scale} is {found} for {name} of {shape} with {blocks}")

    def read(self, name: str, expert: int | None = None, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A tensor, or one slice of its first dimension (`expert`), or rows [start, stop) of that, as float32."""
        stored = self._stored[name]
        if not stored.packing:
            return stored.file.read(name, expert, rows)
        w = self._fp8(name, expert) if stored.packing == "fp8" else self._mxfp4(name, expert)
        return w if rows is None else w[rows[0] : rows[1]]

    def _fp8(self, name: str, expert: int | None) -> NDArray[np.float32]:
        w = self._stored[name].file.read(name, expert)
        scale_name = name + _SCALE
        file = self._files[scale_name]
        scale = file.read(scale_name, expert if len(file.shapes[scale_name]) > 2 else None)
        if scale.ndim < 2 or self._block is None:
            return w * scale.reshape(())
        rows, columns = self._block
        for i in range(scale.shape[-2]):  # a row of blocks at a time: the scales of all would be as large as the matrix
            part = w[..., i * rows : (i + 1) * rows, :]
            part *= np.repeat(scale[..., i, :], columns, axis=-1)[..., None, : part.shape[-1]]
        return w

    def _mxfp4(self, name: str, expert: int | None) -> NDArray[np.float32]:
        blocks_name, scales_name = name + _BLOCKS, name + _SCALES
        blocks = self._files[blocks_name].raw(blocks_name, expert)
        scales = self._files[scales_name].raw(scales_name, expert)
        if (scales == 255).any():
            raise ConvertError(f"{self._files[scales_name].path}: {scales_name} holds 255, which is no number")
        w = np.empty((*blocks.shape[:-1], _MX_BLOCK), np.float32)
        w[..., 0::2], w[..., 1::2] = _E2M1[blocks & 15], _E2M1[blocks >> 4]
        np.ldexp(w, scales.astype(np.int32)[..., None] - 127, out=w)
        return np.swapaxes(w.reshape(*blocks.shape[:-2], -1), -1, -2)

    @property
    def paths(self) -> set[Path]:
        """Of all files."""
        return {file.path for file in self._files.values()}


def _block_size(origin: str, quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    size = quantization.get("weight_block_size")
    if size is None:
        return None
    whole = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    if not whole or not all(1 <= n <= 1 << 20 for n in size):
        raise refused(origin, "quantization_config.weight_block_size", str(size), "two numbers from 1 to 1048576")
    return size[0], size[1]

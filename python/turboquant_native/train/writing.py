"""The tuned file: the original's header and tensors, with what was learned in their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..convert.container import (
    CALIBRATION_KEY,
    CALIBRATION_ROOM,
    CHECKSUMS_KEY,
    HEADER_KEY,
    TENSORS_KEY,
    VERSION_KEY,
    ContainerWriter,
    Outliers,
    StoredMatrix,
)
from .weights import DenseWeight, PackedWeight, Weights

_WRITERS_OWN = ("general.architecture", "general.alignment", VERSION_KEY, TENSORS_KEY, CHECKSUMS_KEY, HEADER_KEY, CALIBRATION_KEY)
_FP16_MAX = 65504.0
_F32, _F16, _BF16 = 0, 1, 30  # GGUF's numbers of types


def write_tuned(file: _core.GgufFile, weights: Weights, target: Path, overwrite: bool) -> int:
    """The file `target`, complete or not at all; its size in bytes. ConvertError where a learned number does not fit its type, OSError."""
    packed, metadata = file.quantized(), file.metadata
    with ContainerWriter(target, str(metadata["general.architecture"]), overwrite=overwrite) as writer:
        for key, value in metadata.items():
            if key not in _WRITERS_OWN:
                writer.add_metadata(key, value)
        writer.add_metadata(CALIBRATION_KEY, CALIBRATION_ROOM)
        for name, kind, shape in file.tensors():
            matrix = name.partition(".tqn")[0]
            if matrix not in packed:
                _add_numbers(writer, file, name, kind, shape, weights)
            elif name == f"{matrix}.tqn":
                _add_packed(writer, file, packed[matrix], matrix, weights)
        return writer.finish()


def _add_packed(writer: ContainerWriter, file: _core.GgufFile, entry: dict[str, Any], name: str, weights: Weights) -> None:
    weight = weights.matrices[name]
    assert isinstance(weight, PackedWeight)
    scale = weight.scale.detach().double().cpu().numpy()
    _check_finite(name, scale)
    top = float(np.float32(scale.max())) or 1.0
    row_scale = np.zeros(len(file.data(f"{name}.tqn_scale")), np.float16)
    row_scale[: weight.n_out] = np.minimum(scale / top, 1)
    matrix = StoredMatrix(weight.bits, weight.n_out, weight.n_in, top, weight.codes, row_scale, weight.codebook)
    outliers = None
    if weight.outliers is not None:
        assert weight.place is not None
        rows, columns = np.divmod(weight.place.cpu().numpy(), weight.n_in)
        ptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=weight.n_out))]).astype(np.int32)
        stored = columns.astype(np.uint16 if weight.n_in <= 65536 else np.int32)
        outliers = Outliers(ptr, stored, _half(name, weight.outliers.detach().cpu().numpy()))
    writer.add_quantized(name, matrix, rotation=str(entry["rotation"]), seed=int(entry["seed"]), outliers=outliers)


def _add_numbers(writer: ContainerWriter, file: _core.GgufFile, name: str, kind: int, shape: tuple[int, ...], weights: Weights) -> None:
    if name in weights.matrices:
        matrix = weights.matrices[name]
        assert isinstance(matrix, DenseWeight)
        learned, learns = matrix.value, matrix.value.requires_grad
    elif name in weights.vectors:
        learned, learns = weights.vectors[name].value, weights.vectors[name].change.requires_grad
    else:
        learns = False
    if not learns:
        writer.add_tensor(name, file.data(name), bf16=kind == _BF16)
        return
    values = learned.detach().float().cpu().numpy().reshape(shape)
    _check_finite(name, values)
    if kind == _F32:
        writer.add_tensor(name, values)
    elif kind == _F16:
        writer.add_tensor(name, _half(name, values))
    else:
        bits = values.view(np.uint32)
        writer.add_tensor(name, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), bf16=True)


def _half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    _check_finite(name, values)
    if float(np.abs(values).max(initial=0)) > _FP16_MAX:
        raise ConvertError(f"{name}: a tuned weight is larger than float16 can hold")
    return values.astype(np.float16)


def _check_finite(name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise ConvertError(f"{name}: tuning has left numbers that are not finite; use a smaller --rate")

"""A model's tensors as PyTorch has them: what is fixed, and what may learn. Every learned number is relative to what it started from, so
that one learning rate suits all of a kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from .. import _core
from ..convert.quantize import QuantizedMatrix
from ..convert.sources import Source
from ..engine.cache_types import KEY_STATISTICS
from .rotation import signs, unrotate

SCALES, NORMS, DENSE, OUTLIERS, FREE = "scales", "norms", "dense", "outliers", "free"  # kinds of learned numbers


@dataclass
class Learned:
    """A tensor that the optimizer changes.

    Attributes:
        kind: SCALES (log of a factor), NORMS (the same, or a bias's change in its own magnitude), DENSE and OUTLIERS (weights), FREE
            (weights that are yet to be rounded).
        unit: what a change of 1 in its gradient's units means: the learning rate is multiplied by it.
    """

    name: str
    kind: str
    tensor: torch.Tensor
    unit: float = 1.0


class Weight(Protocol):
    """A matrix (n_out, n_in) that multiplies rows."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n_in) -> (..., n_out), of x's type."""
        ...

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix, float32."""
        ...

    def learned(self) -> Iterator[Learned]:
        """What may change."""
        ...


class DenseWeight:
    """A matrix of numbers."""

    def __init__(self, name: str, w: torch.Tensor, learns: bool, kind: str = DENSE) -> None:
        self.name, self.value, self._kind = name, w.requires_grad_(learns), kind
        self.magnitude = float(w.detach().float().square().mean().sqrt())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.value.to(x.dtype))

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.embedding(tokens, self.value).float()

    def learned(self) -> Iterator[Learned]:
        if self.value.requires_grad:
            yield Learned(self.name, self._kind, self.value, self.magnitude)


class PackedWeight:
    """A TQN matrix S + diag(scale) C R. The values C are kept unrotated, C R, which the rows' scales do not touch.

    Attributes:
        codes: as the file has them.
        unrotated: (n_out, n_in) C R in the type of the computation.
        stored: (n_out,) scale * row_scale as the file has them; gain: (n_out,) the log of the factor that was learned.
        signs: (n_in,) of the rotation; None: not rotated.
        place: (outliers,) flat index of each outlier; outliers: their values.
    """

    def __init__(self, file: _core.GgufFile, name: str, device: torch.device, dtype: torch.dtype) -> None:
        info = file.quantized()[name]
        self.name, self.bits, self.n_out, self.n_in = name, int(info["bits"]), int(info["n_out"]), int(info["n_in"])
        self.seed = None if info["rotation"] == "none" else int(info["seed"])
        self.codes = np.ascontiguousarray(file.data(name + ".tqn")).view(np.uint8).ravel()
        self.codebook = np.array(file.data(name + ".tqn_cb"), np.int8) if self.bits != 8 else np.empty(0, np.int8)
        stored = np.float32(info["scale"]) * file.data(name + ".tqn_scale")[: self.n_out].astype(np.float32)
        self.stored = torch.from_numpy(stored).to(device)
        self.gain = torch.zeros(self.n_out, device=device, requires_grad=True)
        self.signs = None if self.seed is None else signs(self.n_in, self.seed).to(device)
        self._dtype = dtype
        self.unrotated = self._in_original_basis(device)
        self.place, self.outliers = self._outliers(file, int(info["outliers"]), device)

    def _in_original_basis(self, device: torch.device) -> torch.Tensor:
        """(n_out, n_in) values of the codes times R, in the type of the computation."""
        decoded = _core.reference_decode(self.codes, self.bits, self.n_out, self.n_in, self.codebook)
        w = torch.from_numpy(decoded).to(device).float()
        return (w if self.signs is None else unrotate(w, self.signs)).to(self._dtype)

    def _outliers(self, file: _core.GgufFile, count: int, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if count == 0:
            return None, None
        ptr = file.data(self.name + ".tqn_out_ptr")
        columns = file.data(self.name + ".tqn_out_col")
        columns = columns.view(np.uint16) if columns.dtype == np.int16 else columns
        place = np.repeat(np.arange(self.n_out), np.diff(ptr)) * self.n_in + columns
        values = file.data(self.name + ".tqn_out_val").astype(np.float32)
        return torch.from_numpy(place).to(device), torch.from_numpy(values).to(device).requires_grad_()

    def replace(self, rounded: QuantizedMatrix) -> None:
        """Takes over another rounding of the same shape, bits and rotation."""
        packed, device = rounded.packed, self.stored.device
        codes, scale = np.array(packed.codes), np.float32(packed.scale) * packed.row_scale[: self.n_out].astype(np.float32)
        state = {"codes": torch.from_numpy(codes), "stored": torch.from_numpy(scale), "gain": torch.zeros(self.n_out)}
        if rounded.outliers is not None:
            out = rounded.outliers
            place = np.repeat(np.arange(self.n_out), np.diff(out.ptr)) * self.n_in + out.col
            state |= {"place": torch.from_numpy(place), "outliers": torch.from_numpy(out.val.astype(np.float32))}
        self.codebook = np.array(packed.codebook)
        self.load({name: tensor.to(device) for name, tensor in state.items()})

    def state(self) -> dict[str, torch.Tensor]:
        """What says what the matrix is now."""
        state = {"codes": torch.from_numpy(self.codes), "stored": self.stored, "gain": self.gain.detach()}
        if self.place is not None and self.outliers is not None:
            state |= {"place": self.place, "outliers": self.outliers.detach()}
        return state

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The opposite."""
        device = self.stored.device
        self.codes = state["codes"].cpu().numpy()
        self.stored = state["stored"]
        self.gain = state["gain"].clone().requires_grad_()
        self.unrotated = self._in_original_basis(device)
        if "place" in state:
            self.place, self.outliers = state["place"], state["outliers"].clone().requires_grad_()

    @property
    def scale(self) -> torch.Tensor:
        """(n_out,) float32: the weight that one step of a row's values stands for."""
        return self.stored * self.gain.exp()

    def _whole(self) -> torch.Tensor:
        """(n_out, n_in) with the outliers."""
        w = (self.scale[:, None] * self.unrotated).reshape(-1)
        assert self.place is not None and self.outliers is not None
        return w.index_add(0, self.place, self.outliers.to(w.dtype)).view(self.n_out, self.n_in)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if self.outliers is not None:
            return functional.linear(x, self._whole().to(x.dtype))
        return functional.linear(x, self.unrotated.to(x.dtype)) * self.scale.to(x.dtype)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.outliers is not None:
            return functional.embedding(tokens, self._whole()).float()
        return functional.embedding(tokens, self.unrotated).float() * self.scale[tokens][..., None]

    def learned(self) -> Iterator[Learned]:
        yield Learned(self.name, SCALES, self.gain)
        if self.outliers is not None:
            yield Learned(self.name, OUTLIERS, self.outliers, float(self.outliers.detach().abs().mean()))


class Vector:
    """A norm's weight, which learns by factors, or a bias, which learns by sums."""

    def __init__(self, name: str, stored: torch.Tensor, learns: bool) -> None:
        self.name, self.stored, self.is_bias = name, stored, name.endswith(".bias")
        self.change = torch.zeros_like(stored).requires_grad_(learns)
        self._magnitude = float(stored.square().mean().sqrt())

    @property
    def value(self) -> torch.Tensor:
        """(n,) float32."""
        return self.stored + self._magnitude * self.change if self.is_bias else self.stored * self.change.exp()

    def learned(self) -> Iterator[Learned]:
        if self.change.requires_grad:
            yield Learned(self.name, NORMS, self.change)


@dataclass
class Weights:
    """All tensors of a model, by their names in the file."""

    matrices: dict[str, Weight]
    vectors: dict[str, Vector]

    def learned(self) -> list[Learned]:
        """What may change, in the order of the file."""
        found = [each for matrix in self.matrices.values() for each in matrix.learned()]
        return found + [each for vector in self.vectors.values() for each in vector.learned()]


def of_file(file: _core.GgufFile, device: torch.device, dtype: torch.dtype, learns: bool = True) -> Weights:
    """The student: a TQN file, or an unquantized one."""
    weights = Weights({}, {})
    packed = file.quantized()
    for name in packed:
        weights.matrices[name] = PackedWeight(file, name, device, dtype)
    for name, _, shape in file.tensors():
        if name.partition(".tqn")[0] not in packed and KEY_STATISTICS not in name:
            values = torch.from_numpy(file.dequantize(name)).to(device)
            _add(weights, name, values.reshape(shape), learns, torch.float32)
    return weights


def of_source(source: Source, device: torch.device, dtype: torch.dtype) -> Weights:
    """The teacher: nothing learns."""
    weights = Weights({}, {})
    for name in source.shapes:
        _add(weights, name, torch.from_numpy(source.read(name)).to(device), False, dtype)
    return weights


def _add(weights: Weights, name: str, values: torch.Tensor, learns: bool, dtype: torch.dtype) -> None:
    is_matrix = (values.dim() == 2 and not name.endswith(".bias")) or name.endswith("ffn_gate_inp_shexp.weight")
    if is_matrix:
        weights.matrices[name] = DenseWeight(name, values.reshape(-1, values.shape[-1]).to(dtype).contiguous(), learns)
    else:
        weights.vectors[name] = Vector(name, values, learns)

"""A model in a GGUF file, of any type that the gguf package can dequantize."""

import functools
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import QuantError
from numpy.typing import NDArray

from ..._core import FormatError, GgufFile, UnsupportedError
from ...common.errors import ConvertError, listing
from ...engine.head import TENSORS as HEAD_TENSORS
from ..architectures import Shape, by_gguf_name
from ..heads import head_of_gguf
from ..hyperparameters import hyperparameters_of_gguf
from ..mtp import is_mtp, main_layers, note_of, without_mtp
from ..pooling import embedding_keys_of_gguf
from ..rope import check_rope_factors
from ..tokenizer import tokenizer_of_gguf
from .base import Piece, Source
from .safetensors_file import widen_bf16

# Stored, but recomputed by every engine.
_IGNORED_SUFFIXES = ("attn_rot_embd.weight", ".attn_rot_embd")
# Descriptive strings that stay with the model.
_GENERAL = ("author", "organization", "license", "license.name", "license.link", "description", "url", "source.url")
_UNQUANTIZED = {"F64", "F32", "F16", "BF16"}

_PART = re.compile(r"(.*-)\d{5}-of-(\d{5})\.gguf")


def _open(path: Path) -> GgufFile:
    try:
        return GgufFile(str(path))
    except (FormatError, UnsupportedError, OSError) as error:
        raise ConvertError(str(error)) from None


def _parts(path: Path) -> list[Path]:
    """The files of the model that `path` is one of, the first of which has the metadata: NAME-00001-of-00003.gguf ..."""
    match = _PART.fullmatch(path.name)
    count = int(match[2]) if match else 0
    if match is None or count == 0:
        return [path]
    parts = [path.with_name(f"{match[1]}{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise ConvertError(f"{path}: parts of the model are not there: {listing(absent)}")
    return parts


class GgufSource(Source):
    """A GGUF file, or all the parts of a split one, in llama.cpp's conventions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths = _parts(path)
        self._remember(self._paths)
        files = [_open(part) for part in self._paths]
        metadata = files[0].metadata
        if "turboquant.tensors" in metadata:
            raise ConvertError(f"{path}: the file is already quantized to TQN; convert the original one")
        if metadata.get("split.count", 1) != len(files):
            raise ConvertError(f"{path}: split.count is {metadata.get('split.count', 1)}, but the name says {len(files)}")
        self._files = {name: file for file in files for name, _, _ in file.tensors()}
        self._types = {name: (kind, shape) for file in files for name, kind, shape in file.tensors()}
        self._leave_out_mtp(metadata)
        self._describe(self._metadata)
        stored: dict[str, tuple[str, Shape]] = {
            self.architecture.final_name(name): (name, shape)
            for name, (_, shape) in self._types.items()
            if not name.endswith(_IGNORED_SUFFIXES) and name not in HEAD_TENSORS
        }
        head = head_of_gguf(
            str(path),
            self.architecture.gguf,
            metadata,
            self.hyperparameters["embedding_length"],
            {name: shape for name, (_, shape) in self._types.items()},
        )
        self._pieces = self._bind(stored, [], head)
        self._check_readable()
        self.tokenizer = tokenizer_of_gguf(metadata, self.shapes["token_embd.weight"][0], str(path))

    def stored_files(self) -> list[Path]:
        return self._paths

    @property
    def quantized_as(self) -> str | None:
        weights: dict[str, int] = {}
        for kind, shape in self._types.values():
            if len(shape) > 1:
                name = gguf.GGMLQuantizationType(kind).name
                weights[name] = weights.get(name, 0) + int(np.prod(shape))
        kinds = sorted(weights.keys() - _UNQUANTIZED, key=lambda name: -weights[name])
        bits = sum(count * _bits_of_type(name) for name, count in weights.items()) / max(sum(weights.values()), 1)
        return f"{', '.join(kinds[:3])}, {bits:.1f} bits per weight" if kinds else None

    def _leave_out_mtp(self, metadata: dict[str, Any]) -> None:
        self._metadata, self.notes, arch = metadata, [], str(metadata.get("general.architecture"))
        if (n_layers := main_layers(arch, metadata, self._types)) is None:
            return
        self._metadata = without_mtp(arch, metadata, n_layers)
        left_out = [name for name in self._types if is_mtp(name, n_layers)]
        self._types = {name: entry for name, entry in self._types.items() if name not in left_out}
        self.notes = [note_of(left_out)] if left_out else []

    def _describe(self, metadata: dict[str, Any]) -> None:
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ConvertError(f"{self.path}: no general.architecture, so not a language model")
        self.architecture = by_gguf_name(name, has_experts=bool(metadata.get(f"{name}.expert_count", 0)))
        if "token_embd.weight" not in self._types:
            raise ConvertError(f"{self.path}: missing tensors: token_embd.weight")
        self.hyperparameters = hyperparameters_of_gguf(
            str(self.path), self.architecture, metadata, n_vocab=self._types["token_embd.weight"][1][0]
        )
        self.embedding = embedding_keys_of_gguf(str(self.path), self.architecture.gguf, metadata)
        self._check_plausible({name: shape for name, (_, shape) in self._types.items()})
        described = {key: text for key in ("name", *_GENERAL) if isinstance(text := metadata.get(f"general.{key}"), str)}
        self.name = described.pop("name", self.path.stem)
        self.general = {f"general.{key}": text for key, text in described.items()}

    def _check_readable(self) -> None:
        """ConvertError for a type that cannot be dequantized and for rotary factors that the reader would refuse."""
        for piece in self._pieces.values():
            _kind(self.path, piece.stored, self._types[piece.stored][0])
        for name in self.shapes:
            if name.startswith("rope_f"):
                check_rope_factors(str(self.path), name, self.read(name))

    def _read(self, name: str) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._read_piece(self._pieces[name]).reshape(self.shapes[name]))

    def _read_piece(self, piece: Piece) -> NDArray[np.float32]:
        kind = _kind(self.path, piece.stored, self._types[piece.stored][0])
        data = self._files[piece.stored].data(
            piece.stored
        )  # the leading dimensions are the tensor's; the last one holds numbers, or bytes of blocks
        if piece.expert is not None:
            data = data[piece.expert]
        if piece.rows is not None:
            data = data[piece.rows[0] : piece.rows[1]]
        if piece.picked is not None:
            data = data[piece.picked]
        return _to_float32(data, kind)


def _kind(path: Path, tensor: str, number: int) -> gguf.GGMLQuantizationType:
    """The type of a tensor; ConvertError where it cannot be dequantized."""
    if (kind := _readable(number)) is None:
        name = next((kind.name for kind in gguf.GGMLQuantizationType if kind == number), number)
        raise ConvertError(f"{path}: {tensor} has type {name}, which cannot be read")
    return kind


@functools.cache
def _readable(number: int) -> gguf.GGMLQuantizationType | None:
    try:
        kind = gguf.GGMLQuantizationType(number)
        if kind.name not in ("F64", "F32", "F16", "BF16"):
            gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except (NotImplementedError, QuantError, ValueError, KeyError):
        return None
    return kind


def _bits_of_type(name: str) -> float:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return 8 * size / block


def _to_float32(data: NDArray[Any], kind: gguf.GGMLQuantizationType) -> NDArray[np.float32]:
    if kind == gguf.GGMLQuantizationType.BF16:
        return widen_bf16(data.view(np.uint16))
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    return gguf.dequantize(data, kind)

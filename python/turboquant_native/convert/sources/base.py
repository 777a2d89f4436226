"""What a conversion reads: one model, its tensors under their final names, one at a time as float32."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConvertError, listing
from ...common.files import FileState, file_state
from ..architectures import Architecture, Hyperparameters, Shape
from ..delta_net import split_recurrent
from ..folding import folded, is_folded, scale_of
from ..heads import SourceHead
from ..tensor_shapes import shares_keys, tensor_shapes
from ..tokenizer import TokenizerData

TRANSPOSED = "_exps_transposed."  # in our own names of such tensors, before they are split


@dataclass(frozen=True)
class Piece:
    """Where a tensor comes from: rows [start, stop) of a stored tensor, of one expert where experts are stacked; None: all of it.

    every_second: of the columns, from this one on; None: all. transposed: columns are then rows. picked: of
    all rows, in this order.
    """

    stored: str
    rows: tuple[int, int] | None = None
    expert: int | None = None
    every_second: int | None = None
    transposed: bool = False
    picked: NDArray[np.intp] | None = field(default=None, compare=False)

    def cut(self, w: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is left to do when the rows of the expert are read."""
        w = w if self.every_second is None else w[..., self.every_second :: 2]
        w = w if self.picked is None else w[self.picked]
        return w.T if self.transposed else w


class Source(ABC):
    """A model to convert. Subclasses fill the attributes, then call `_bind`.

    Attributes:
        path: the folder or file, for messages.
        name: a title for general.name.
        general: further `general.*` strings (license, author ...).
        embedding: how one vector is made of a text, where the model says so (`pooling.py`).
        notes: what a user should know of what was left out.
        head: keys that describe a head that scores (`heads.py`); empty where there is none.
        shapes: tensors under their final names, in file order, (n_out, n_in) or (n,).
        parameters: elements of all tensors.
    """

    path: Path
    name: str
    notes: list[str]
    architecture: Architecture
    hyperparameters: Hyperparameters
    general: dict[str, str]
    embedding: dict[str, Any]
    head: dict[str, Any]
    tokenizer: TokenizerData | None
    shapes: dict[str, Shape]
    _pieces: dict[str, Piece]
    _scales: dict[str, Piece]  # what is multiplied into other tensors
    _opened: dict[Path, FileState]

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def tied(self) -> bool:
        """Whether the embedding is also the output matrix."""
        return "output.weight" not in self.shapes

    @property
    def quantized_as(self) -> str | None:
        """How the weights were already rounded, such as "Q4_1, 5.0 bits per weight"; None where they are as trained."""
        return None

    def metadata(self) -> dict[str, Any]:
        """Keys of the file that describe the model: general.* and <arch>.*, in order."""
        arch = self.architecture.gguf
        general = {"general.architecture": arch, "general.type": "model", "general.name": self.name, **self.general}
        embedding = {key if "." in key else f"{arch}.{key}": value for key, value in self.embedding.items()}
        return general | {f"{arch}.{key}": value for key, value in self.hyperparameters.items()} | embedding | self.head

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in its final orientation and convention, float32; peak memory is this tensor."""
        w, scale = self._read(name), self._scales.get(scale_of(name) or "")
        return w if scale is None else folded(name, w, self._read_piece(scale))

    def read_rows(self, name: str, first: int, stop: int) -> NDArray[np.float32]:
        """Rows [first, stop) of a matrix that is stored as it is."""
        return self._read_piece(replace(self._pieces[name], rows=(first, stop)))

    @abstractmethod
    def _read(self, name: str) -> NDArray[np.float32]:
        """The same without what is multiplied into it."""

    @abstractmethod
    def _read_piece(self, piece: Piece) -> NDArray[np.float32]:
        """As it is stored."""

    def stored_files(self) -> list[Path]:
        """Files that the model is read from: a target must not overwrite them, and they must not change meanwhile."""
        return [self.path]

    def check_unchanged(self) -> None:
        """ConvertError where a file is not what it was when the source was opened: the tensors read would be those of two models."""
        for file in self.stored_files():
            if file in self._opened and (not file.exists() or file_state(file) != self._opened[file]):
                raise ConvertError(f"{file}: changed while the model was converted; nothing was written, start again")

    def _remember(self, files: Iterable[Path]) -> None:
        """Notes the state of the files, before anything is read from them."""
        self._opened = {file: file_state(file) for file in files if file.is_file()}

    def _check_plausible(self, stored: Mapping[str, Shape]) -> None:
        """ConvertError where the hyperparameters ask for many more tensors than are stored, before tables are made for them."""
        layers, experts = self.hyperparameters["block_count"], self.hyperparameters.get("expert_count", 0)
        held = sum(shape[0] if len(shape) == 3 else 3 for shape in stored.values())  # experts may be stacked, or three matrices in one
        if layers > len(stored) or layers * experts > held + 10_000:
            wanted = f"{layers} layers" + (f" of {experts} experts" if experts else "")
            raise ConvertError(f"{self.path}: a model of {wanted} is described, but {len(stored)} tensors are stored")

    def _bind(
        self, stored: dict[str, tuple[str, Shape]], unknown: list[str], head: SourceHead, needs_output: bool = False
    ) -> dict[str, Piece]:
        """Match stored tensors (by GGUF name: own name and shape) with what the architecture needs; every problem in one message.

        `unknown` are stored tensors without a GGUF name; `head`: what scores, checked already;
        `needs_output`: the embedding may not stand in for the output matrix.
        """
        required, optional = tensor_shapes(self.architecture, self.hyperparameters)
        if needs_output:
            required["output.weight"] = optional["output.weight"]
        pieces: dict[str, Piece] = {}
        found: dict[str, Shape] = {}
        for gguf_name, (own_name, shape) in stored.items():
            if _is_unread(gguf_name, self.hyperparameters):
                continue
            for name, piece, piece_shape in split_fused(gguf_name, own_name, shape, self.hyperparameters):
                if name in required or name in optional:
                    pieces[name], found[name] = piece, piece_shape
                else:
                    unknown.append(own_name)
        expected = {**required, **optional}
        missing = [name for name in required if name not in found] + _missing_biases(found, expected, self.hyperparameters["block_count"])
        wrong = [f"{name} is {_text(found[name])}, expected {_text(expected[name])}" for name in found if found[name] != expected[name]]
        problems = [
            f"{what}: {listing(names)}"
            for what, names in (
                ("missing tensors", missing),
                ("tensors with no place in this architecture", unknown),
                ("wrong shapes", wrong),
            )
            if names
        ]
        if problems:
            raise ConvertError(f"{self.path}: not a complete {self.architecture.model_type} model; " + "; ".join(problems))
        self.shapes = {name: shape for name, shape in _file_order(expected) if name in found and not is_folded(name)}
        self._scales = {name: pieces.pop(name) for name in list(pieces) if is_folded(name)}
        self.shapes |= {name: shape for name, (_, shape) in head.tensors.items()}
        self.head = dict(head.keys)
        return pieces | {name: Piece(own_name) for name, (own_name, _) in head.tensors.items()}


def _is_unread(name: str, hp: Hyperparameters) -> bool:
    """Keys and values of a layer that sees those of another: checkpoints hold some."""
    match = re.fullmatch(r"blk\.(\d+)\.attn_(k|v|k_norm|v_norm)\.(weight|bias)", name)
    return match is not None and shares_keys(int(match[1]), hp)


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _missing_biases(found: dict[str, Shape], expected: dict[str, Shape], n_layers: int) -> list[str]:
    """Biases that some layers have and others lack."""
    kinds = {match[1] for name in found if (match := re.fullmatch(r"blk\.\d+\.(attn_\w+\.bias)", name))}
    names = [f"blk.{layer}.{kind}" for layer in range(n_layers) for kind in sorted(kinds)]
    return [name for name in names if name in expected and name not in found]


def _file_order(shapes: dict[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """Tensors outside the layers first, then layer by layer; the same for every kind of source."""
    return iter(sorted(shapes.items(), key=lambda item: int(item[0].split(".")[1]) if item[0].startswith("blk.") else -1))


def split_fused(gguf_name: str, own_name: str, shape: Shape, hp: Hyperparameters) -> Iterator[tuple[str, Piece, Shape]]:
    """The final tensors inside a stored one: (name, piece, shape). q, k and v in one matrix, gate and up in one, stacked experts."""
    if "ssm.group_count" in hp and (parts := list(split_recurrent(gguf_name, shape, hp))):
        yield from ((name, Piece(own_name, picked=rows), part_shape) for name, rows, part_shape in parts)
        return
    layer, _, kind = gguf_name.rpartition(".attn_qkv.")
    if layer:
        head_dim = hp["attention.key_length"]
        heads = (hp["attention.head_count"], hp["attention.head_count_kv"], hp["attention.head_count_kv"])
        widths = [(f"{layer}.attn_{part}.{kind}", n * head_dim) for part, n in zip("qkv", heads, strict=True)]
        yield from _split_rows(widths, own_name, shape)
    elif gguf_name.endswith(".ffn_up.weight") and len(shape) == 2 and shape[0] == 2 * hp["feed_forward_length"]:
        gate = gguf_name.replace("ffn_up", "ffn_gate")
        yield from _split_rows([(gate, shape[0] // 2), (gguf_name, shape[0] // 2)], own_name, shape)
    elif TRANSPOSED in gguf_name:
        yield from _split_transposed(gguf_name, own_name, shape, hp)
    elif gguf_name.endswith("_exps.weight") and len(shape) == 3:
        _check_experts(own_name, shape, hp)
        for expert in range(shape[0]):
            if ".ffn_gate_up_exps" not in gguf_name:
                yield gguf_name.replace("_exps.", f".{expert}."), Piece(own_name, expert=expert), shape[1:]
                continue
            half = shape[1] // 2
            for number, part in enumerate(("gate", "up")):
                piece = Piece(own_name, rows=(number * half, (number + 1) * half), expert=expert)
                yield gguf_name.replace("gate_up_exps.", f"{part}.{expert}."), piece, (half, shape[2])
    elif gguf_name == "per_layer_model_proj.weight":
        rows = hp.get("embedding_length_per_layer_input", 0)
        yield from _split_rows([(f"blk.{layer}.{gguf_name}", rows) for layer in range(hp["block_count"])], own_name, shape)
    elif gguf_name.endswith(".ffn_gate_inp_shexp.weight"):
        yield gguf_name, Piece(own_name), shape[-1:] if shape[:-1] in ((), (1,)) else shape
    else:
        yield gguf_name, Piece(own_name), shape


def _check_experts(own_name: str, shape: Shape, hp: Hyperparameters) -> None:
    if not shape or shape[0] != hp.get("expert_count"):
        raise ConvertError(f"{own_name}: {shape[0] if shape else 0} experts are stored, expected {hp.get('expert_count')}")


def _split_transposed(gguf_name: str, own_name: str, shape: Shape, hp: Hyperparameters) -> Iterator[tuple[str, Piece, Shape]]:
    """gpt-oss's experts: matrices (experts, inputs, outputs), and biases (experts, outputs); gate and up are every second output."""
    _check_experts(own_name, shape, hp)
    layer, _, rest = gguf_name.partition(".ffn_")
    for number, part in enumerate(("gate", "up") if rest.startswith("gate_up") else ("down",)):
        second = number if rest.startswith("gate_up") else None
        width = shape[-1] if second is None else (shape[-1] + 1 - number) // 2
        if rest.endswith(".bias"):
            yield f"{layer}.ffn_{part}_exps.bias", Piece(own_name, every_second=second), (*shape[:-1], width)
            continue
        for expert in range(shape[0]):
            piece = Piece(own_name, expert=expert, every_second=second, transposed=True)
            yield f"{layer}.ffn_{part}.{expert}.weight", piece, (width, *shape[1:-1])


def _split_rows(widths: list[tuple[str, int]], own_name: str, shape: Shape) -> Iterator[tuple[str, Piece, Shape]]:
    start = 0
    for name, width in widths:
        yield name, Piece(own_name, rows=(start, start + width)), (max(0, min(width, shape[0] - start)), *shape[1:])
        start += width
    if start < shape[0]:
        raise ConvertError(f"{own_name}: {shape[0]} rows where its parts need {start}")

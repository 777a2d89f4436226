"""Heads that score: what classifiers and reward models have in place of, or beside, the output matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError, UnsupportedError

KIND_KEY = "turboquant.head.kind"
ACTIVATION_KEY = "turboquant.head.activation"
KINDS = ("sequence", "token")
TENSORS = ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")  # llama.cpp's names
MAX_LABELS = 4096
Scores = NDArray[np.float32]


def labels_key(architecture: str) -> str:
    """The key of the labels' names, llama.cpp's."""
    return f"{architecture}.classifier.output_labels"


def check_shapes(shapes: dict[str, tuple[int, ...]], n_embd: int) -> None:
    """ValueError naming the tensor whose shape does not fit the others'. shapes: of those of TENSORS that there are."""
    width = n_embd
    for name in ("cls", "cls.output"):
        if f"{name}.weight" not in shapes and name == "cls":
            if "cls.bias" in shapes:
                raise ValueError("tensor cls.bias stands there without cls.weight")
            continue
        shape = shapes.get(f"{name}.weight")
        if shape is None:
            raise ValueError("tensor cls.output.weight is missing")
        if len(shape) != 2 or shape[1] != width or shape[0] < 1:
            raise ValueError(f"tensor {name}.weight has the shape {shape}, expected (any, {width})")
        bias = shapes.get(f"{name}.bias")
        if bias is not None and bias != shape[:1]:
            raise ValueError(f"tensor {name}.bias has the shape {bias}, expected {shape[:1]}")
        width = shape[0]
    if width > MAX_LABELS:
        raise ValueError(f"tensor cls.output.weight has {width} outputs, expected 1 to {MAX_LABELS}")


@dataclass(frozen=True)
class Head:
    """One or two linear layers on hidden states behind the output norm, a ReLU between two.

    Attributes:
        kind: "sequence": the last token's scores are those of the text; "token": each token has its own.
        labels: a name for each score.
        layers: (weight (n_out, n_in), bias (n_out) or None) float32 each.
    """

    kind: str
    labels: tuple[str, ...]
    layers: tuple[tuple[Scores, Scores | None], ...]

    def __call__(self, hidden: Scores) -> Scores:
        """(n, n_embd) hidden states -> (n, labels) scores as they are, without softmax or sigmoid."""
        x = hidden
        for index, (weight, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if index else x) @ weight.T
            x = x if bias is None else x + bias
        return np.asarray(x, np.float32)


def read_head(file: Any, n_embd: int) -> Head | None:
    """The head of a model file (`_core.GgufFile`); None where it has none. FormatError names the file, the tensor or key, and the value."""
    shapes = {name: shape for name, _, shape in file.tensors() if name in TENSORS}
    if not shapes:
        return None
    try:
        check_shapes(shapes, n_embd)
        values = {name: _finite(name, file.dequantize(name).reshape(shape)) for name, shape in shapes.items()}
        names = [name for name in ("cls", "cls.output") if f"{name}.weight" in values]
        layers = tuple((values[f"{name}.weight"], values.get(f"{name}.bias")) for name in names)
        return Head(*_described(file.metadata, shapes["cls.output.weight"][0], len(layers)), layers)
    except (ValueError, UnsupportedError) as error:
        raise FormatError(f"{file.path}: {error}") from None


def _finite(name: str, values: Scores) -> Scores:
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"tensor {name} is {values[place]} at {place}")
    return values


def _described(metadata: dict[str, Any], n_labels: int, n_layers: int) -> tuple[str, tuple[str, ...]]:
    architecture = metadata.get("general.architecture")
    kind = metadata.get(KIND_KEY, "sequence")  # llama.cpp's files of rerankers have no such key
    if kind not in KINDS:
        raise ValueError(f"key {KIND_KEY} is {str(kind)[:60]!r}, expected one of {', '.join(KINDS)}")
    activation = metadata.get(ACTIVATION_KEY)
    if n_layers == 2 and activation != "relu":
        raise ValueError(f"key {ACTIVATION_KEY} is {str(activation)[:60]!r}, expected 'relu' between cls.weight and cls.output.weight")
    key = labels_key(str(architecture))
    labels = metadata.get(key, [f"LABEL_{i}" for i in range(n_labels)])
    if not isinstance(labels, list) or len(labels) != n_labels or not all(isinstance(label, str) for label in labels):
        found = f"{len(labels)} entries" if isinstance(labels, list) else repr(str(labels)[:60])
        raise ValueError(f"key {key} is {found}, expected {n_labels} texts, one for each row of cls.output.weight")
    return kind, tuple(labels)


def softmax(scores: Scores) -> Scores:
    """Along the last axis, (..., n) float32."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(scores: Scores) -> Scores:
    """Of each, float32."""
    positive = 1 / (1 + np.exp(-np.abs(scores.astype(np.float64))))
    return np.asarray(np.where(scores >= 0, positive, 1 - positive), np.float32)


ACTIVATIONS = {"none": lambda scores: scores, "softmax": softmax, "sigmoid": sigmoid}

"""Heads that score, in a source: `score` and `v_head` of Hugging Face folders, llama.cpp's `cls` tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import ConvertError
from ..engine.head import ACTIVATION_KEY, KIND_KEY, KINDS, TENSORS, check_shapes, labels_key
from ..engine.steps import STEPS_KEY, StepConvention
from .architectures import Config, Shape
from .fields import accept_text, refused

RANK_POOLING = 4  # GGUF's number: the vector is read by a head
_PLACES = {"score.0": "cls", "score.2": "cls.output", "score": "cls.output", "classifier": "cls.output", "v_head.summary": "cls.output"}
# What checkpoints of an architecture were trained with, where their files do not say.
_CONVENTIONS = {
    "ForProcessRewardModel": StepConvention(
        "<extra_0>", system="Please reason step by step, and put your final answer within \\boxed{}.", label=1
    )
}
_OF_TOKENS = ("ForTokenClassification", "ForProcessRewardModel")


@dataclass(frozen=True)
class SourceHead:
    """A head as a source stores it: own names and shapes by final name, and the keys that describe it."""

    tensors: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)


def head_tensor(name: str) -> str | None:
    """The final name of a Hugging Face tensor that belongs to a head; None for others."""
    place, _, kind = name.rpartition(".")
    return f"{_PLACES[place]}.{kind}" if place in _PLACES and kind in ("weight", "bias") else None


def head_of_folder(origin: str, architecture: str, config: Config, n_embd: int, tensors: dict[str, tuple[str, Shape]]) -> SourceHead:
    """The head of a folder. origin: its config.json. ConvertError names the tensor or field that does not fit."""
    if not tensors:
        return SourceHead()
    _check(origin, tensors, n_embd)
    model = (config.get("architectures") or [""])[0]
    per_token = any(own.startswith("v_head.") for own, _ in tensors.values()) or model.endswith(_OF_TOKENS)
    n_labels = tensors["cls.output.weight"][1][0]
    keys: dict[str, Any] = {KIND_KEY: KINDS[per_token], labels_key(architecture): _labels(origin, config, n_labels)}
    if "cls.weight" in tensors:
        keys[ACTIVATION_KEY] = "relu"
    convention = next((found for suffix, found in _CONVENTIONS.items() if model.endswith(suffix)), None)
    return SourceHead(tensors, keys | ({STEPS_KEY: convention.to_json()} if convention else {}))


def head_of_gguf(origin: str, architecture: str, metadata: Mapping[str, Any], n_embd: int, shapes: Mapping[str, Shape]) -> SourceHead:
    """The head of a GGUF file; its keys are checked by the reader's rules."""
    tensors = {name: (name, shapes[name]) for name in TENSORS if name in shapes}
    if not tensors and metadata.get(f"{architecture}.pooling_type") == RANK_POOLING:
        raise ConvertError(f"{origin}: {architecture}.pooling_type is {RANK_POOLING} (rank), but there is no cls.output.weight")
    if not tensors:
        return SourceHead()
    _check(origin, tensors, n_embd)
    key, n_labels = labels_key(architecture), tensors["cls.output.weight"][1][0]
    labels = metadata.get(key, [f"LABEL_{i}" for i in range(n_labels)])
    if not isinstance(labels, list) or len(labels) != n_labels or not all(isinstance(label, str) for label in labels):
        raise refused(origin, key, labels, f"{n_labels} texts")
    kind, activation = metadata.get(KIND_KEY, "sequence"), metadata.get(ACTIVATION_KEY)
    if kind not in KINDS:
        raise refused(origin, KIND_KEY, kind, f"one of {', '.join(KINDS)}")
    if "cls.weight" in tensors and activation != "relu":
        raise refused(origin, ACTIVATION_KEY, activation, "'relu', the only activation that is supported between two layers of a head")
    keys = {KIND_KEY: kind, key: labels} | ({ACTIVATION_KEY: activation} if "cls.weight" in tensors else {})
    return SourceHead(tensors, keys | ({STEPS_KEY: _stored(origin, metadata[STEPS_KEY])} if STEPS_KEY in metadata else {}))


def _check(origin: str, tensors: dict[str, tuple[str, Shape]], n_embd: int) -> None:
    try:
        check_shapes({name: shape for name, (_, shape) in tensors.items()}, n_embd)
    except ValueError as error:
        raise ConvertError(f"{origin}: the head that scores ({', '.join(own for own, _ in tensors.values())}): {error}") from None


def _stored(origin: str, text: Any) -> str:
    try:
        return StepConvention.of(text).to_json()
    except ValueError as error:
        raise ConvertError(f"{origin}: {STEPS_KEY}: {error}") from None


def _labels(origin: str, config: Config, n_labels: int) -> list[str]:
    """Names of the scores: id2label, else transformers' default."""
    named = config.get("id2label")
    if named is None:
        return [f"LABEL_{i}" for i in range(n_labels)]
    if set(named) != {str(i) for i in range(n_labels)}:
        raise refused(origin, "id2label", f"of {len(named)} entries", f"a name for each of 0 to {n_labels - 1}, the rows of the head")
    try:
        return [accept_text(named[str(i)]) for i in range(n_labels)]
    except ValueError:
        raise refused(origin, "id2label", str(named), "texts") from None

"""Gated delta nets (Qwen 3.5, Qwen3-Next): where their tensors lie in a source, and in which order a file has their heads."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architectures import Hyperparameters, Shape

Rows = NDArray[np.intp]
_V_ROWS = re.compile(r"blk\.\d+\.(attn_gate\.weight|ssm_(alpha|beta)\.weight|ssm_a|ssm_dt\.bias)")


def _interleaved(n_heads: int, widths: list[int]) -> list[Rows]:
    """The rows of each part, where every head has its rows of all parts side by side."""
    rows = np.arange(n_heads * sum(widths)).reshape(n_heads, -1)
    return [part.ravel() for part in np.split(rows, np.cumsum(widths)[:-1], axis=1)]


def split_recurrent(gguf_name: str, shape: Shape, hp: Hyperparameters) -> Iterator[tuple[str, Rows | None, Shape]]:
    """The final tensors in a stored one, of models with delta nets: (name, its rows or None for all, shape). Nothing for other tensors."""
    layer, _, kind = gguf_name.partition(".attn_q.")
    if kind and shape[0] == 2 * hp["attention.head_count"] * hp["attention.key_length"]:
        yield from _parts(
            layer, ("attn_q", "attn_gate"), kind, _interleaved(hp["attention.head_count"], [hp["attention.key_length"]] * 2), shape
        )
    elif gguf_name.endswith(".ssm_conv1d.weight") and len(shape) == 3:
        yield gguf_name, None, (shape[0], shape[2])
    elif gguf_name.endswith(".attn_qkv.weight"):
        yield gguf_name, None, shape
    elif gguf_name.endswith((".ssm_in.weight", ".ssm_ba.weight")):
        layer, _, which = gguf_name.removesuffix(".weight").rpartition(".")
        n_keys, per_key = hp["ssm.group_count"], hp["ssm.time_step_rank"] // hp["ssm.group_count"]
        if which == "ssm_ba":
            yield from _parts(layer, ("ssm_beta", "ssm_alpha"), "weight", _interleaved(n_keys, [per_key] * 2), shape)
            return
        values = per_key * value_dim(hp)
        q, k, v, z = _interleaved(n_keys, [hp["ssm.state_size"]] * 2 + [values] * 2)
        yield from _parts(layer, ("attn_qkv", "attn_gate"), "weight", [np.concatenate([q, k, v]), z], shape)


def _parts(layer: str, names: tuple[str, ...], kind: str, rows: list[Rows], shape: Shape) -> Iterator[tuple[str, Rows | None, Shape]]:
    whole = sum(map(len, rows)) == shape[0]
    for name, own in zip(names, rows, strict=True):
        yield f"{layer}.{name}.{kind}", own, (len(own) if whole else shape[0], *shape[1:])


def value_dim(hp: Hyperparameters) -> int:
    """Elements of a value head."""
    return int(hp["ssm.inner_size"] // hp["ssm.time_step_rank"])


def _tiled(n: int, hp: Hyperparameters) -> Rows:
    """The order in which llama.cpp has n rows of value heads: the first of each key head, then the second of each."""
    return np.arange(n).reshape(hp["ssm.group_count"], hp["ssm.time_step_rank"] // hp["ssm.group_count"], -1).swapaxes(0, 1).ravel()


def to_gguf_convention(name: str, w: NDArray[Any], hp: Hyperparameters, tiled: bool) -> NDArray[Any]:
    """A tensor of a Hugging Face folder as llama.cpp has it: decay rates as such, value heads in its order."""
    if re.fullmatch(r"blk\.\d+\.ssm_a", name):
        w = -np.exp(w)
    if not tiled:
        return w
    if _V_ROWS.fullmatch(name) and w.shape[0] in (hp["ssm.time_step_rank"], hp["ssm.inner_size"]):
        return w[_tiled(w.shape[0], hp)]
    if name.endswith((".attn_qkv.weight", ".ssm_conv1d.weight")):
        first = 2 * hp["ssm.group_count"] * hp["ssm.state_size"]
        return np.concatenate([w[:first], w[first:][_tiled(hp["ssm.inner_size"], hp)]])
    return w[:, _tiled(w.shape[1], hp)] if name.endswith(".ssm_out.weight") else w

"""Gemma 4's mixtures scale what the router sees and what each expert gives. Files have these numbers in the matrices: router and down."""

import re

import numpy as np
from numpy.typing import NDArray

# llama.cpp's names, behind `blk.N.`.
ROUTER_SCALE, EXPERT_SCALES = "ffn_gate_inp.scale", "ffn_down_exps.scale"
_ROUTER, _DOWN = re.compile(r"(blk\.\d+\.)ffn_gate_inp\.weight"), re.compile(r"(blk\.\d+\.)ffn_down\.(\d+)\.weight")


def is_folded(name: str) -> bool:
    """Whether a tensor is multiplied into another one."""
    return name.endswith((f".{ROUTER_SCALE}", f".{EXPERT_SCALES}"))


def scale_of(name: str) -> str | None:
    """The tensor that is multiplied into this one, in such models."""
    if match := _ROUTER.fullmatch(name):
        return match[1] + ROUTER_SCALE
    match = _DOWN.fullmatch(name)
    return match[1] + EXPERT_SCALES if match else None


def folded(name: str, w: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix times its scale: the router's (n_embd), which comes with the root of n_embd, or the expert's own of (n_experts)."""
    if match := _DOWN.fullmatch(name):
        return w * scale[int(match[2])]
    return w * (scale * np.float32(w.shape[1] ** -0.5))

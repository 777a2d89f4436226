"""Functions of many elements that one kernel can do: compiled where PyTorch can (a GPU with Triton), else as they stand.

Their traffic, not the products, is what a step of a small model takes without this.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """Over the last dimension, in float32; weight None: all ones."""
    x = x.float()
    y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(dtype)


def activated(kind: str, gate: torch.Tensor, up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The gated product of a feed-forward layer, or of attention's output (kind "sigmoid")."""
    if kind == "silu":
        gate = functional.silu(gate)
    elif kind == "sigmoid":
        gate = gate.sigmoid()
    elif kind == "clamped_swiglu":  # gpt-oss
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
        gate = gate * torch.sigmoid(1.702 * gate)
    else:
        gate = functional.gelu(gate, approximate="tanh")
    return (gate * up).to(dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: bool, dtype: torch.dtype) -> torch.Tensor:
    """Rope: the first dimensions of (..., positions, head_dim) by (positions, dims / 2) angles; pairs: neighbours turn, else halves."""
    dims = 2 * cos.shape[-1]
    turning, rest = x[..., :dims].float(), x[..., dims:].float()
    if pairs:
        a, b = turning[..., 0::2], turning[..., 1::2]
        both = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turning.chunk(2, dim=-1)
        both = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([both, rest], dim=-1).to(dtype)


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of each row in nats, from logits (rows, n_vocab)."""
    reference = teacher.float().log_softmax(dim=-1)
    return (reference.exp() * (reference - student.float().log_softmax(dim=-1))).sum(dim=-1)


@functools.cache
def _can_compile() -> bool:
    """Whether PyTorch makes kernels here: it needs Triton and a C compiler."""
    try:
        x = torch.ones(8, device="cuda")
        return bool((torch.compile(lambda x: x.sin() + 1)(x) > 1).all())
    except Exception as error:  # whatever is missing: tuning only takes longer
        print(f"tuning without compiled kernels: {type(error).__name__}", file=sys.stderr)
        return False


@functools.cache
def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 64)  # one for every shape
    return torch.compile(function, dynamic=False)


def for_device(function: Callable[..., torch.Tensor], device: torch.device) -> Callable[..., torch.Tensor]:
    """The function as it is fastest there."""
    return _compiled(function) if device.type == "cuda" and _can_compile() else function

"""Adam for tensors that come and go, each with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .weights import Learned

_MEAN, _SQUARE = 0.9, 0.99  # how much of the past stays
_LEAST = 1e-15  # far below the root of any gradient's square that matters


class Adam:
    """What it remembers of a tensor goes by name and kind, and is forgotten once the tensor no longer learns."""

    def __init__(self) -> None:
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}  # mean, mean square, steps

    def step(self, learned: Sequence[Learned], rates: Mapping[str, float]) -> None:
        """Moves every tensor against its gradient, which is taken away; rates: by kind, relative to a tensor's unit."""
        moving = [each for each in learned if each.tensor.grad is not None]
        gradients = [each.tensor.grad for each in moving]
        moments = [self._moments.get(_key(each)) or _zeros(each.tensor) for each in moving]
        means, squares, steps = ([moment[i] for moment in moments] for i in range(3))
        with torch.no_grad():
            torch._foreach_lerp_(means, gradients, 1 - _MEAN)
            torch._foreach_mul_(squares, _SQUARE)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - _SQUARE)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, [(1 - _SQUARE ** (n + 1)) ** 0.5 for n in steps])
            torch._foreach_add_(roots, _LEAST)
            changes = torch._foreach_div(means, roots)
            factors = [-rates[each.kind] * each.unit / (1 - _MEAN ** (n + 1)) for each, n in zip(moving, steps, strict=True)]
            torch._foreach_mul_(changes, factors)
            torch._foreach_add_([each.tensor for each in moving], changes)
        self._moments = {_key(each): (m, s, n + 1) for each, m, s, n in zip(moving, means, squares, steps, strict=True)}
        for each in moving:
            each.tensor.grad = None

    def state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        return {key: list(moments) for key, moments in self._moments.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The opposite."""
        self._moments = {key: (mean, square, int(steps)) for key, (mean, square, steps) in state.items()}


def _key(learned: Learned) -> str:
    return f"{learned.kind} {learned.name}"


def _zeros(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    return torch.zeros_like(tensor), torch.zeros_like(tensor), 0

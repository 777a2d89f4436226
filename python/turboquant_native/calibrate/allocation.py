"""Widths for matrices: the least predicted loss that fits a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConvertError

_CELLS = 16384  # budgets that the table of the dynamic programme distinguishes


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix: its bytes, and the loss that it is predicted to cost."""

    bits: int
    bytes: int
    loss: float
    outliers: float = 0.0  # fraction of the weights kept in FP16


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """A choice for every matrix, of the least total loss within `budget` bytes; ConvertError where not even the smallest choices fit.

    Exact when the budget above the smallest sizes is at most _CELLS bytes; else sizes are rounded up to cells of the table, so that the
    budget is never exceeded, and what rounding left over is spent on the best single steps.
    """
    ordered = {name: sorted(options, key=lambda choice: choice.bytes) for name, options in choices.items()}
    smallest = sum(options[0].bytes for options in ordered.values())
    if smallest > budget:
        raise ConvertError(f"{budget} bytes are too few: the matrices take {smallest} at their smallest widths")
    chosen = _dynamic_programme(list(ordered.values()), budget - smallest)
    picked = dict(zip(ordered, chosen, strict=True))
    _spend_rest(ordered, picked, budget)
    return {name: ordered[name][index] for name, index in picked.items()}


def _dynamic_programme(options: list[list[Choice]], spare: int) -> list[int]:
    """Index of each matrix's choice; `spare`: bytes above the first choices of all."""
    cell = max(1, -(-spare // _CELLS))
    cells = spare // cell
    best: NDArray[np.float64] = np.zeros(cells + 1)  # least loss within so many cells
    taken = []
    for choices in options:
        table = np.full((len(choices), cells + 1), np.inf)
        for index, choice in enumerate(choices):
            cost = -(-(choice.bytes - choices[0].bytes) // cell)
            if cost <= cells:
                table[index, cost:] = best[: cells + 1 - cost] + choice.loss
        taken.append(table.argmin(axis=0).astype(np.uint8))
        best = table.min(axis=0)
    return _trace(options, taken, cells, cell)


def _trace(options: list[list[Choice]], taken: list[NDArray[np.uint8]], cells: int, cell: int) -> list[int]:
    picked = []
    for choices, table in zip(reversed(options), reversed(taken), strict=True):
        index = int(table[cells])
        picked.append(index)
        cells -= -(-(choices[index].bytes - choices[0].bytes) // cell)
    return picked[::-1]


def _spend_rest(options: Mapping[str, list[Choice]], picked: dict[str, int], budget: int) -> None:
    """Single steps to other choices that lower the loss and still fit, the best per byte first."""
    while True:
        spare = budget - sum(options[name][index].bytes for name, index in picked.items())
        steps = []
        for name, index in picked.items():
            now = options[name][index]
            for other, choice in enumerate(options[name]):
                if choice.loss < now.loss and choice.bytes - now.bytes <= spare:
                    steps.append(((now.loss - choice.loss) / max(choice.bytes - now.bytes, 1), name, other))
        if not steps:
            return
        _, name, other = max(steps)
        picked[name] = other

"""Codes chosen again, some matrices at a time: what is still free to move learns to make up for what rounding has cost so far.

All packed matrices start from the teacher's weights. Group by group they are rounded with error feedback, under the inputs that they see
behind the groups already rounded; in between, the free ones and all continuous numbers follow the gradient. The last ones are made up for
by scales and norms alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _core
from ..convert.quantize import MatrixSpec, QuantizedMatrix, quantize_matrix
from ..convert.sources import Source
from .network import Network
from .weights import FREE, DenseWeight, PackedWeight

_LAYERS = 3  # rounded together
_DAMPING = 0.03
_AT_ONCE = 8  # windows


def groups(network: Network) -> list[list[str]]:
    """Names of the packed matrices in the order of rounding: embedding and output, then block after block of layers, in each first what
    reads the residual stream, then what writes to it and can still make up for that."""
    weights = network.weights.matrices
    found = [[name for name in weights if not name.startswith("blk.")]]
    layers = [network.readers(layer) for layer in range(network.n_layers)]
    for first in range(0, len(layers), _LAYERS):
        block = layers[first : first + _LAYERS]
        found += [[name for layer in block for name, reads_stream in layer if reads_stream == which] for which in (True, False)]
    packed = [[name for name in group if isinstance(weights[name], PackedWeight)] for group in found]
    return [group for group in packed if group]


class Progressive:
    """The rounding of one student.

    Args:
        network: the student; all its packed matrices are replaced by the source's, free to learn.
        windows: (n, seq_len) tokens under which matrices are rounded.
    """

    def __init__(self, network: Network, source: Source, windows: NDArray[np.int32], threads: int) -> None:
        self._network, self._threads, self._windows = network, threads or _core.cpu_count(), windows
        self.groups = groups(network)
        self._packed: dict[str, PackedWeight] = {}
        for name in [name for group in self.groups for name in group]:
            weight = network.weights.matrices[name]
            assert isinstance(weight, PackedWeight)
            self._packed[name] = weight
            values = torch.from_numpy(source.read(name)).to(weight.stored.device)
            network.weights.matrices[name] = DenseWeight(name, values, learns=True, kind=FREE)
        self.done = 0  # groups that are rounded

    def round_next(self) -> None:
        """One more group: its learned weights become codes."""
        group = self.groups[self.done]
        hessians = self._hessians(group)
        threads = max(1, self._threads // len(group))  # feedback goes from block to block: matrices side by side keep more cores busy

        def rounded(name: str) -> QuantizedMatrix:
            free, old = self._network.weights.matrices[name], self._packed[name]
            assert isinstance(free, DenseWeight)
            outliers = 0 if old.outliers is None else len(old.outliers)
            spec = MatrixSpec(old.bits, old.seed, outliers / (old.n_out * old.n_in), damping=_DAMPING)
            return quantize_matrix(free.value.detach().cpu().numpy(), spec, hessians.get(name), threads=threads)

        with ThreadPoolExecutor(min(self._threads, len(group))) as pool:
            for name, matrix in zip(group, pool.map(rounded, group), strict=True):
                self._packed[name].replace(matrix)
                self._network.weights.matrices[name] = self._packed[name]
        self.done += 1

    def _hessians(self, group: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """(n_in, n_in) E[x x^T] of what each matrix reads; of an expert that no token came to there is none."""
        sums: dict[str, torch.Tensor] = {}
        rows: dict[str, int] = {}
        wanted = set(group)

        def tap(name: str, x: torch.Tensor) -> None:
            if name in wanted:
                flat = x.reshape(-1, x.shape[-1]).float()
                product = flat.T @ flat
                sums[name] = sums[name] + product if name in sums else product
                rows[name] = rows.get(name, 0) + len(flat)

        device = self._network.device
        with torch.no_grad(), self._network.tapped(tap):
            for first in range(0, len(self._windows), _AT_ONCE):
                tokens = torch.from_numpy(self._windows[first : first + _AT_ONCE].astype(np.int64)).to(device)
                hidden = self._network.hidden(tokens)
                if any(not name.startswith("blk.") for name in group):
                    self._network.logits(hidden[:, ::16])
        found = {name: (total / rows[name]).cpu().numpy() for name, total in sums.items()}
        return {name: (h + h.T) / 2 for name, h in found.items() if h.any()}

    def state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        rounded = [name for group in self.groups[: self.done] for name in group]
        return {"done": self.done, "rounded": {name: self._packed[name].state() for name in rounded}}

    def load(self, state: dict[str, Any]) -> None:
        """The opposite."""
        self.done = int(state["done"])
        for name, stored in state["rounded"].items():
            self._packed[name].load(stored)
            self._network.weights.matrices[name] = self._packed[name]

"""Codes that move: weights whose gradients add up until a tile's codes no longer say what they mean, and the tile is encoded again.

Each matrix has latents, which start at the values of its codes and follow their gradients. The forward pass sees the codes alone. Now and
then the tiles whose latents have drifted farthest are given to the encoder; the others keep their codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _core
from .rotation import rotate, unrotate
from .weights import PackedWeight, Weights

_MOMENTUM, _DECAY = 0.9, 0.99
_TRELLIS = range(1, 5)  # bits of the formats whose codes are searched


class _Latents:
    """Of one matrix, in the original basis and in steps of its codes, as its gradients are."""

    def __init__(self, weight: PackedWeight) -> None:
        self.weight = weight
        weight.codes = weight.codes.copy()
        weight.unrotated.requires_grad_()
        values = weight.values.float()
        self.latent = values if weight.signs is None else unrotate(values, weight.signs)
        self._mean, self._square = torch.zeros_like(self.latent), torch.zeros_like(self.latent)
        self._magnitude = float(values.square().mean().sqrt())

    def step(self, number: int, rate: float) -> None:
        """Adam's, in units of the values' magnitude; number: from 1."""
        gradient = self.weight.unrotated.grad
        assert gradient is not None
        self._mean.lerp_(gradient.float(), 1 - _MOMENTUM)
        self._square.mul_(_DECAY).addcmul_(gradient.float(), gradient.float(), value=1 - _DECAY)
        root = (self._square / (1 - _DECAY**number)).sqrt_().add_(1e-20)
        self.latent.addcdiv_(self._mean, root, value=-rate * self._magnitude / (1 - _MOMENTUM**number))
        self.weight.unrotated.grad = None

    @property
    def targets(self) -> torch.Tensor:
        """(tiles, 64, 4) float32 in steps of the codes, strip by strip; rows of padding are 0."""
        signs = self.weight.signs
        return self._tiled(self.latent if signs is None else rotate(self.latent, signs))

    def _tiled(self, rows: torch.Tensor) -> torch.Tensor:
        height, width = _core.TILE_ROWS, _core.TILE_COLS
        padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % height))
        return padded.view(-1, height, rows.shape[1] // width, width).transpose(1, 2).reshape(-1, height, width)

    def drift(self) -> torch.Tensor:
        """(tiles,) squared distance of the latents from the codes."""
        return (self.targets - self._tiled(self.weight.values.float())).square().sum(dim=(1, 2))

    def encode(self, tiles: torch.Tensor, dither: float, rng: np.random.Generator, threads: int) -> int:
        """New codes for these tiles (numbers); the number of values that changed."""
        weight, height, width = self.weight, _core.TILE_ROWS, _core.TILE_COLS
        targets = self.targets[tiles].cpu().numpy()
        if dither:
            targets += rng.uniform(-dither, dither, targets.shape).astype(np.float32)
        per_strip = weight.n_in // width
        scale = torch.nn.functional.pad(weight.scale.detach(), (0, -weight.n_out % height)).view(-1, height)
        units = scale[tiles // per_strip].cpu().numpy()
        rows = np.ascontiguousarray((targets * units[..., None]).reshape(-1, width))
        packed = _core.encode(rows, weight.bits, codebook=weight.codebook, unit_scale=units.reshape(-1), threads=threads)
        values = _core.reference_decode(packed.codes, weight.bits, len(rows), width, weight.codebook).reshape(-1, height, width)
        places = tiles.cpu().numpy()
        weight.codes.reshape(-1, 32 * weight.bits)[places] = packed.codes.reshape(len(places), -1)
        return self._place(places, values)

    def _place(self, places: NDArray[np.int64], values: NDArray[np.int8]) -> int:
        weight, height, width = self.weight, _core.TILE_ROWS, _core.TILE_COLS
        everything = self._tiled(weight.values)
        index = torch.from_numpy(places).to(everything.device)
        new = torch.from_numpy(values).to(everything.device)
        changed = int((everything[index] != new).sum())
        everything[index] = new
        rows = everything.view(-1, weight.n_in // width, height, width).transpose(1, 2).reshape(-1, weight.n_in)
        self.refresh(rows[: weight.n_out])
        return changed

    def refresh(self, values: torch.Tensor) -> None:
        """Takes over values of codes."""
        self.weight.values = values.contiguous()
        with torch.no_grad():
            self.weight.unrotated.copy_(self.weight.in_original_basis(values))

    def state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        moving = {"latent": self.latent, "mean": self._mean, "square": self._square}
        return {"values": self.weight.values, "codes": torch.from_numpy(self.weight.codes)} | moving

    def load(self, state: dict[str, Any]) -> None:
        """The opposite."""
        self.latent, self._mean, self._square = state["latent"], state["mean"], state["square"]
        self.weight.codes = state["codes"].cpu().numpy()
        self.refresh(state["values"])

    def end(self) -> None:
        """Nothing moves from here on."""
        self.weight.unrotated.requires_grad_(False)
        self.weight.unrotated.grad = None
        self.latent = self._mean = self._square = self.latent.new_empty(0)


class MovingCodes:
    """The codes of a model's trellis matrices.

    Args:
        rate: of the latents, in their magnitude a step.
        share: of all tiles, that are encoded at a time.
        dither: half the width of the uniform noise that is added to targets, in steps of the codes; 0: none.
    """

    def __init__(self, weights: Weights, rate: float, share: float, dither: float, seed: int, threads: int) -> None:
        matrices = [m for m in weights.matrices.values() if isinstance(m, PackedWeight) and m.bits in _TRELLIS]
        self._latents = [_Latents(matrix) for matrix in matrices]
        self._rate, self._share, self._dither, self._seed, self._threads = rate, share, dither, seed, threads
        self._steps = 0
        self.encoded = self.changed = 0  # tiles, and values in them

    def step(self, factor: float) -> None:
        """The latents follow their gradients; factor: of the rate."""
        self._steps += 1
        with torch.no_grad():
            for latents in self._latents:
                latents.step(self._steps, self._rate * factor)

    def encode(self) -> None:
        """The tiles that have drifted farthest get new codes."""
        with torch.no_grad():
            drifts = [latents.drift() for latents in self._latents]
            everything = torch.cat(drifts)
            count = max(1, int(self._share * len(everything)))
            threshold = everything.topk(count).values[-1]
            rng = np.random.default_rng([self._seed, self._steps])
            for latents, drift in zip(self._latents, drifts, strict=True):
                tiles = ((drift >= threshold) & (drift > 0)).nonzero()[:, 0]
                if len(tiles):
                    self.encoded += len(tiles)
                    self.changed += latents.encode(tiles, self._dither, rng, self._threads)

    def end(self) -> None:
        """The codes are final."""
        for latents in self._latents:
            latents.end()

    def state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        return {"steps": self._steps, "latents": [latents.state() for latents in self._latents]}

    def load(self, state: dict[str, Any]) -> None:
        """The opposite."""
        self._steps = state["steps"]
        for latents, stored in zip(self._latents, state["latents"], strict=True):
            latents.load(stored)

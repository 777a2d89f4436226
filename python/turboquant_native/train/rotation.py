"""The rotation of docs/format.md on a PyTorch device: for weights that the engine keeps rotated and gradients see as they were."""

from __future__ import annotations

import functools

import numpy as np
import torch

from .. import _core

_LARGEST = 2048  # rows of a factor: large products are fast, and a width of 65536 still has small factors


def _hadamard(n: int) -> torch.Tensor:
    """(n, n) orthonormal, Sylvester's order; n a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix / np.sqrt(n)


def _hartley(n: int) -> torch.Tensor:
    """(n, n) orthonormal."""
    angle = 2 * np.pi * torch.outer(torch.arange(n), torch.arange(n)).double() / n
    return (angle.cos() + angle.sin()) / np.sqrt(n)


def _primes(n: int) -> list[int]:
    """With multiplicity, ascending."""
    found, prime = [], 2
    while n > 1:
        while n % prime == 0:
            found.append(prime)
            n //= prime
        prime += 1
    return found


@functools.cache
def _factors(width: int, device: str) -> tuple[torch.Tensor, ...]:
    """K as a Kronecker product of few matrices, the fastest varying first."""
    factors = [torch.ones(1, 1, dtype=torch.float64)]
    for prime in _primes(width):
        if len(factors[-1]) * prime > _LARGEST:
            factors.append(torch.ones(1, 1, dtype=torch.float64))
        factors[-1] = torch.kron(_hadamard(2) if prime == 2 else _hartley(prime), factors[-1])
    return tuple(factor.float().to(device) for factor in factors)


def signs(width: int, seed: int) -> torch.Tensor:
    """(width,) the diagonal of D: the first row of K is positive, so its product with D shows them."""
    first = np.zeros((1, width), np.float32)
    first[0, 0] = 1
    return torch.from_numpy(np.sign(_core.rotate_rows(first, seed, inverse=True)[0]))


def _mix(w: torch.Tensor) -> torch.Tensor:
    """w K for rows w (rows, width), float32."""
    rows, width = w.shape
    done = 1  # the widths of the factors that were applied, which vary faster
    for factor in _factors(width, str(w.device)):
        n = len(factor)
        if done == 1:
            w = (w.reshape(-1, n) @ factor).reshape(rows, width)
        else:
            w = torch.matmul(factor, w.reshape(-1, n, done)).reshape(rows, width)
        done *= n
    return w


def rotate(w: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Rows w -> w D K, float32."""
    return _mix(w * signs)


def unrotate(w: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Rows w -> w K D, float32."""
    return _mix(w) * signs

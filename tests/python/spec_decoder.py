"""A decoder of packed codes written from docs/format.md alone: no line of it comes from the library. Slow and plain."""

import numpy as np
from numpy.typing import NDArray

OFFSET = {1: 15, 2: 15, 3: 15, 4: 31}


def table_indices(bits: int, window: int) -> tuple[int, int]:
    """The indices i of T and j of U for a window of 12 bits."""

    def n(first: int) -> int:  # the nibble from bit `first`; bits beyond the window are 0
        return window >> first & 15

    if bits == 1:
        i, j = n(0) + n(3) + n(8), n(0) + n(6) + n(8)
    elif bits == 2:
        i, j = 2 * n(0) + n(8), 2 * n(0) + n(2) + n(8)
    elif bits == 3:
        i, j = 2 * n(0) + n(3) + 2 * n(9), 2 * n(0) + n(6)
    else:
        i, j = n(0) + n(4) + n(8), n(0) + n(8)
    return i % 16, j % 16


def tile_values(tile: NDArray[np.uint8], bits: int, codebook: NDArray[np.int8]) -> NDArray[np.int64]:
    """(64, 4) values of a tile of 32 * bits bytes."""
    # Byte b of the circular string is the byte of plane b mod bits, lane b div bits.
    string = np.unpackbits(tile.reshape(bits, 32).T.ravel(), bitorder="little").astype(int)
    values = np.empty((64, 4), int)
    for step in range(256):
        length = 12 if bits <= 4 else bits
        window = sum(int(string[(bits * step + i) % len(string)]) << i for i in range(length))
        if bits == 8:
            value = window - 256 * (window >= 128)
        elif bits == 6:
            value = int(codebook[window])
        else:
            i, j = table_indices(bits, window)
            value = int(codebook[i]) + int(codebook[16 + j]) - OFFSET[bits]
        lane, register = divmod(step, 8)
        values[8 * register + lane // 4, lane % 4] = value
    return values


def decode(codes: NDArray[np.uint8], bits: int, codebook: NDArray[np.int8], n_out: int, n_in: int) -> NDArray[np.int64]:
    """(n_out, n_in) values of a matrix, before any scale."""
    tiles = codes.reshape(-(-n_out // 64), n_in // 4, 32 * bits)
    strips = [np.concatenate([tile_values(tile, bits, codebook) for tile in strip], axis=1) for strip in tiles]
    return np.concatenate(strips)[:n_out]


def random_codebook(random: np.random.Generator, bits: int) -> NDArray[np.int8]:
    """Any codebook that a reader must take."""
    if bits == 6:
        upper = np.sort(random.integers(0, 128, 32)).astype(np.int8)
        return np.concatenate([-upper[::-1], upper])
    return random.integers(0, OFFSET[bits] + 1, 32).astype(np.int8) if bits <= 4 else np.empty(0, np.int8)

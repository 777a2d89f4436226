"""Models of known shapes with random weights: their speed is that of the real ones, and nothing has to be downloaded."""

from pathlib import Path

import numpy as np

from .. import _core
from .container import ContainerWriter, StoredMatrix
from .quantize import rotation_seed
from .synthetic_shapes import SHAPES, Shape

__all__ = ["SHAPES", "Shape", "write"]


def _random_matrix(rng: np.random.Generator, bits: int, n_out: int, n_in: int) -> StoredMatrix:
    """Random codes, which are valid codes, scaled so that outputs are as large as inputs."""
    sizes = _core.plane_bytes(n_out, n_in, bits)
    codebook, unit = _core.default_codebook(bits)
    deviation = 1 / unit if codebook.size else np.arange(-128, 128).std()
    codes = np.frombuffer(rng.bytes(sizes["codes"]), np.uint8)
    row_scale = np.zeros(sizes["row_scale"] // 2, np.float16)
    row_scale[:n_out] = 1
    return StoredMatrix(bits, n_out, n_in, float(1 / (deviation * np.sqrt(n_in))), codes, row_scale, codebook)


def write(path: str | Path, shape: Shape, bits: int, embed_bits: int = 8, seed: int = 0) -> None:
    """Writes a model file of a shape: layers at `bits`, embeddings (and the output matrix) at `embed_bits`; it has no tokenizer."""
    rng = np.random.default_rng(seed)
    with ContainerWriter(path, shape.architecture, overwrite=True) as out:
        for key, value in shape.metadata().items():
            out.add_metadata(key, value)
        for name, sizes, value in shape.tensors():
            out.add_tensor(name, np.full(sizes, value, np.float32))
        for name, n_out, n_in in shape.routers():
            out.add_tensor(name, rng.standard_normal((n_out, n_in), np.float32))
        for name, n_out, n_in in shape.matrices():
            width = bits if name.startswith("blk.") else embed_bits
            packed = _random_matrix(rng, width, n_out, n_in)
            out.add_quantized(name, packed, rotation="hartley-hadamard", seed=rotation_seed(name))
        out.finish()

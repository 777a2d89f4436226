"""Models of known shapes with random weights: their speed is that of the real ones, and nothing has to be downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .container import ContainerWriter, StoredMatrix
from .quantize import rotation_seed


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of the llama or qwen2 architecture."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    architecture: str = "llama"
    tied: bool = True
    rope_base: float = 500000.0
    qkv_bias: bool = False

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """(name, n_out, n_in) of every matrix."""
        yield "token_embd.weight", self.n_vocab, self.n_embd
        if not self.tied:
            yield "output.weight", self.n_vocab, self.n_embd
        q_width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        for layer in range(self.n_layers):
            prefix = f"blk.{layer}."
            yield prefix + "attn_q.weight", q_width, self.n_embd
            yield prefix + "attn_k.weight", kv_width, self.n_embd
            yield prefix + "attn_v.weight", kv_width, self.n_embd
            yield prefix + "attn_output.weight", self.n_embd, q_width
            yield prefix + "ffn_gate.weight", self.n_ff, self.n_embd
            yield prefix + "ffn_up.weight", self.n_ff, self.n_embd
            yield prefix + "ffn_down.weight", self.n_embd, self.n_ff

    def vectors(self) -> Iterator[tuple[str, int, float]]:
        """(name, length, value) of every norm and bias."""
        yield "output_norm.weight", self.n_embd, 1.0
        for layer in range(self.n_layers):
            yield f"blk.{layer}.attn_norm.weight", self.n_embd, 1.0
            yield f"blk.{layer}.ffn_norm.weight", self.n_embd, 1.0
            if self.qkv_bias:
                yield f"blk.{layer}.attn_q.bias", self.n_heads * self.head_dim, 0.0
                yield f"blk.{layer}.attn_k.bias", self.n_kv_heads * self.head_dim, 0.0
                yield f"blk.{layer}.attn_v.bias", self.n_kv_heads * self.head_dim, 0.0

    def metadata(self) -> dict[str, Any]:
        """The file's keys under the architecture's name."""
        values = {
            "block_count": self.n_layers,
            "context_length": 131072,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": self.rope_base,
            "rope.dimension_count": self.head_dim,
            "vocab_size": self.n_vocab,
        }
        return {f"{self.architecture}.{key}": value for key, value in values.items()}


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, rope_base=100000.0),
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151936, architecture="qwen2", rope_base=1000000.0, qkv_bias=True),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
}


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
        for name, length, value in shape.vectors():
            out.add_tensor(name, np.full(length, value, np.float32))
        for name, n_out, n_in in shape.matrices():
            width = bits if name.startswith("blk.") else embed_bits
            packed = _random_matrix(rng, width, n_out, n_in)
            out.add_quantized(name, packed, rotation="hartley-hadamard", seed=rotation_seed(name))
        out.finish()

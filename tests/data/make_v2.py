"""Makes v2.tqn.gguf, a llama of two layers with every width of format version 2, and v2.npz, what it must mean.

The file is committed and every later release must read it; run this only to add files of new versions (`python make_v2.py FOLDER`).
Nothing of the meaning comes from the library: weights are decoded by tests/python/spec_decoder.py, logits computed by a forward
pass in NumPy, float64.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "python"))
from spec_decoder import decode, random_codebook
from turboquant_native.convert.container import ContainerWriter, Outliers

WIDTH, FEED_FORWARD, HEADS, KV_HEADS, VOCAB, BASE, EPSILON = 24, 40, 3, 1, 96, 10000.0, 1e-5
HEAD = WIDTH // HEADS
TOKENS = np.array([3, 95, 0, 41, 41, 7, 64, 12, 88, 30])


def splitmix64(seed: int, n: int) -> list[int]:
    outputs, mask = [], 2**64 - 1
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ z >> 31)
    return outputs


def rotation(n: int, seed: int) -> np.ndarray:
    """R = K D: D from the seed's bits, K a Kronecker product with the power of two varying fastest."""
    words = splitmix64(seed, (n + 63) // 64)
    signs = np.array([-1.0 if words[j // 64] >> j % 64 & 1 else 1.0 for j in range(n)])
    k, rest = np.ones((1, 1)), n
    while rest % 2 == 0:
        k, rest = np.kron(np.array([[1, 1], [1, -1]]) / np.sqrt(2), k), rest // 2
    for q in (q for q in range(3, rest + 1, 2)):
        while rest % q == 0:
            angle = 2 * np.pi * np.outer(np.arange(q), np.arange(q)) / q
            k, rest = np.kron((np.cos(angle) + np.sin(angle)) / np.sqrt(q), k), rest // q
    return k * signs


class Maker:
    """Random packed matrices into the writer, their decoded values aside."""

    def __init__(self, out: ContainerWriter) -> None:
        self.out, self.weights, self._random = out, {}, np.random.default_rng(2024)

    def packed(self, name: str, n_out: int, n_in: int, bits: int, seed: int | None, n_outliers: int = 0) -> None:
        random, strips = self._random, -(-n_out // 64)
        codes = random.integers(0, 256, strips * (n_in // 4) * 32 * bits, dtype=np.uint8)
        codebook = random_codebook(random, bits)
        row_scale = np.zeros(64 * strips, np.float16)
        row_scale[:n_out] = random.uniform(0.25, 1, n_out)
        values = decode(codes, bits, codebook, n_out, n_in)
        scale = float(np.float32(1 / (values.std() * np.sqrt(n_in))))
        weight = scale * row_scale[:n_out, None].astype(np.float64) * values
        if seed is not None:
            weight = weight @ rotation(n_in, seed)
        table = self._outliers(weight, n_outliers) if n_outliers else None
        matrix = SimpleNamespace(bits=bits, n_out=n_out, n_in=n_in, scale=scale, codes=codes, row_scale=row_scale)
        matrix.codebook = codebook
        kind = "none" if seed is None else "hartley-hadamard"
        self.out.add_quantized(name, matrix, rotation=kind, seed=seed or 0, outliers=table)
        self.weights[name] = weight

    def _outliers(self, weight: np.ndarray, count: int) -> Outliers:
        places = np.sort(self._random.choice(weight.size, count, replace=False))
        rows, columns = np.divmod(places, weight.shape[1])
        values = self._random.uniform(-1, 1, count).astype(np.float16)
        weight[rows, columns] += values
        ptr = np.searchsorted(rows, np.arange(weight.shape[0] + 1)).astype(np.int32)
        return Outliers(ptr, columns.astype(np.uint16), values)

    def norm(self, name: str) -> None:
        weight = self._random.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        self.out.add_tensor(name, weight)
        self.weights[name] = weight.astype(np.float64)


def make(out: ContainerWriter) -> dict[str, np.ndarray]:
    keys = {
        "block_count": 2, "context_length": 32, "embedding_length": WIDTH, "feed_forward_length": FEED_FORWARD, "vocab_size": VOCAB,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.layer_norm_rms_epsilon": EPSILON,
        "rope.dimension_count": HEAD, "rope.freq_base": BASE,
    }  # fmt: skip
    for key, value in keys.items():
        out.add_metadata(f"llama.{key}", value)
    maker = Maker(out)
    maker.packed("token_embd.weight", VOCAB, WIDTH, 8, None)
    maker.packed("output.weight", VOCAB, WIDTH, 6, 2**64 - 1, 5)
    maker.norm("output_norm.weight")
    for layer in range(2):
        blk, first = f"blk.{layer}.", 2 * layer + 1
        maker.norm(blk + "attn_norm.weight")
        maker.norm(blk + "ffn_norm.weight")
        for name, n_out in {"attn_q": WIDTH, "attn_k": KV_HEADS * HEAD, "attn_v": KV_HEADS * HEAD, "attn_output": WIDTH}.items():
            maker.packed(f"{blk}{name}.weight", n_out, WIDTH, first, 1000 + layer, 3 if name == "attn_v" else 0)
        for name, n_out, n_in in [("ffn_gate", FEED_FORWARD, WIDTH), ("ffn_up", FEED_FORWARD, WIDTH), ("ffn_down", WIDTH, FEED_FORWARD)]:
            maker.packed(f"{blk}{name}.weight", n_out, n_in, first + 1, 2000 + layer, 4 if name == "ffn_down" else 0)
    out.finish()
    return maker.weights


def forward(w: dict[str, np.ndarray]) -> np.ndarray:
    """(tokens, vocabulary) logits of TOKENS."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPSILON) * w[name]

    def rope(x: np.ndarray) -> np.ndarray:  # (tokens, heads, HEAD): neighbours turn together
        angle = np.arange(len(TOKENS))[:, None, None] * BASE ** (-np.arange(0, HEAD, 2) / HEAD)
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.stack([even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], -1)
        return turned.reshape(x.shape)

    x = w["token_embd.weight"][TOKENS]
    mask = np.triu(np.full((len(TOKENS), len(TOKENS)), -np.inf), 1)
    for layer in range(2):
        blk = f"blk.{layer}."
        h = norm(x, blk + "attn_norm.weight")
        q, k, v = (h @ w[f"{blk}attn_{n}.weight"].T for n in "qkv")
        q, k, v = rope(q.reshape(-1, HEADS, HEAD)), rope(k.reshape(-1, KV_HEADS, HEAD)), v.reshape(-1, KV_HEADS, HEAD)
        scores = np.einsum("thd,sgd->hts", q, k) / np.sqrt(HEAD) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hts,sgd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(-1, WIDTH)
        x = x + attended @ w[blk + "attn_output.weight"].T
        h = norm(x, blk + "ffn_norm.weight")
        gate, up = h @ w[blk + "ffn_gate.weight"].T, h @ w[blk + "ffn_up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[blk + "ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ w["output.weight"].T


def main() -> None:
    folder = Path(sys.argv[1])
    with ContainerWriter(folder / "v2.tqn.gguf", "llama", overwrite=True) as out:
        weights = make(out)
    matrices = {name: weight.astype(np.float32) for name, weight in weights.items() if weight.ndim == 2}
    np.savez_compressed(folder / "v2.npz", tokens=TOKENS, logits=forward(weights), **matrices)


if __name__ == "__main__":
    main()

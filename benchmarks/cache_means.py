"""Would calibrated means of keys, or exact first positions, make codes of 4 bits better? KL divergence of the tokens behind a prompt whose
cache was replaced by what such codes stand for (docs/research/quality.md).

    python benchmarks/cache_means.py MODEL --text FILE --calibration FILE [--tokens 1024] [--rows 128] [--windows 2]

Prints Markdown. The share of the means is that of the keys' energy, the mean over layers and heads, after the rotary embedding.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import _core
from turboquant_native.engine.vocabulary import Vocabulary
from turboquant_native.evaluate.evaluation import divergence, normalize

HEADER, RECORD, SEED = 32, 64, 0x6B76  # of saved states (cpp/model/saved_state.cpp); of the rotation (cpp/format/cache.h)
LEVELS = np.array([6, 18, 31, 44, 58, 75, 96, 127], np.float32)


class State:
    """A saved float32 state of a model of attention alone whose layers are alike; `keys` and `values`: (layers, heads, positions, dim)."""

    def __init__(self, model: Any, state: bytes) -> None:
        layers, dims = model.config["n_layers"], model.config["layers"][0]
        self.head = state[: HEADER + RECORD * layers]
        shape = (layers, 2, dims["n_kv_heads"], -1, dims["head_dim"])
        both = np.frombuffer(state, np.float32, offset=len(self.head)).reshape(shape)
        self.keys, self.values = both[:, 0].copy(), both[:, 1].copy()

    def bytes(self, keys: np.ndarray, values: np.ndarray) -> bytes:
        return self.head + np.ascontiguousarray(np.stack([keys, values], axis=1), np.float32).tobytes()


def coded(x: np.ndarray, bits: int) -> np.ndarray:
    """What codes of the rows (..., dim) stand for; the scalar encoder's steps in float32."""
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32)
    turned = _core.rotate_rows(rows, SEED)
    scale = np.abs(turned).max(axis=1, keepdims=True) / 127 + 1e-30
    if bits == 8:
        result = np.rint(turned / scale) * scale
    else:
        for _ in range(3):
            units = np.abs(turned / scale)
            levels = np.sign(turned) * LEVELS[np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, units)]
            result = levels * scale
            scale = (turned * levels).sum(axis=1, keepdims=True) / (levels**2).sum(axis=1, keepdims=True)
    return _core.rotate_rows(np.ascontiguousarray(result, np.float32), SEED, True).reshape(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--windows", type=int, default=2)
    args = parser.parse_args()
    model = _core.Model(args.model, precision="f32")
    vocabulary = Vocabulary(model.file.metadata, len(model.file.metadata["tokenizer.ggml.tokens"]))
    context = _core.Context(model, n_ctx=args.tokens + args.rows, cache="f32")

    def state_of(tokens: np.ndarray) -> State:
        context.rewind(0, 0)
        context.eval(tokens[: args.tokens], 0, 0, "none")
        return State(model, context.save(0, args.tokens))

    def encoded(path: Path) -> np.ndarray:
        return np.array(vocabulary.encode(path.read_text(encoding="utf-8")[:400_000]), np.int32)

    means = state_of(encoded(args.calibration)).keys.mean(axis=2, keepdims=True)

    def first_exact(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda k: np.concatenate([k[:, :, :64], make(k)[:, :, 64:]], axis=2)

    def centred(k: np.ndarray, bits: int = 4) -> np.ndarray:
        return coded(k - means, bits) + means

    variants: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
        "k8v8": (lambda k: coded(k, 8), 8),
        "k8v4": (lambda k: coded(k, 8), 4),
        "k8v8, means of keys subtracted": (lambda k: centred(k, 8), 8),
        "k8v4, means of keys subtracted": (lambda k: centred(k, 8), 4),
        "k4v4": (lambda k: coded(k, 4), 4),
        "k4v4, means of keys subtracted": (centred, 4),
        "k4v4, first 64 keys exact": (first_exact(lambda k: coded(k, 4)), 4),
        "k4v4, both": (first_exact(centred), 4),
    }
    text, found, share = encoded(args.text), {name: [] for name in variants}, []
    for window in range(args.windows):
        tokens = text[window * (args.tokens + args.rows) :][: args.tokens + args.rows]
        state = state_of(tokens)
        share.append(float(((means**2).sum(-1) / (state.keys**2).sum(-1).mean(-1, keepdims=True)).mean()))

        def scored(keys: np.ndarray, values: np.ndarray, state: State = state, tokens: np.ndarray = tokens) -> np.ndarray:
            context.load(0, state.bytes(keys, values))
            return normalize(context.eval(tokens[args.tokens :], args.tokens, 0, "all"))

        exact = scored(state.keys, state.values)
        for name, (keys, value_bits) in variants.items():
            found[name].append(divergence(exact, scored(keys(state.keys), coded(state.values, value_bits))))
    print(f"{Path(args.model).name}: means hold {np.mean(share):.0%} of the keys' energy\n")
    print("| cache | KLD, mean | median | 99 % |\n|---|---|---|---|")
    for name, parts in found.items():
        kld = np.concatenate(parts)
        print(f"| {name} | {kld.mean():.4f} | {np.median(kld):.4f} | {np.quantile(kld, 0.99):.3f} |")


if __name__ == "__main__":
    main()

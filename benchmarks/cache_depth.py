"""A token's time and a cache's bytes at depth, by type of cache, without computing the prompt: the slot gets random keys and values.

    python benchmarks/cache_depth.py MODEL [--depth 0,2048,8192,32768] [--cache f16,k8v8] [--tokens 32] [--threads N] [--gpu]

Prints Markdown; times are the least of the tokens, and the median of whole tokens. Attention: its share of the token, where the device
measures it; GB/s: the cache's bytes over that time. Bytes a token: what a context grows by for a position, and that over what the layout
says (`_core.cached_bytes`). TQ_ISA=avx2: without AVX-512.
"""

import argparse
import struct
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from turboquant_native import _core
from turboquant_native.engine.cache_types import CHOICES
from turboquant_native.engine.devices import device

HEADER, RECORD, POSITIONS = 32, 56, 24  # of saved states (cpp/model/saved_state.cpp): sizes, and where the number of positions stands


def random_state(model: Any, n: int) -> bytes:
    """A float16 state of n positions, normal numbers."""
    context = _core.Context(model, n_ctx=64, cache="f16")
    context.eval(np.zeros(1, np.int32), 0, 0, "none")
    head = bytearray(context.save(0, 1)[: HEADER + RECORD * model.config["n_layers"]])
    struct.pack_into("<q", head, POSITIONS, n)
    numbers = sum(2 * layer["n_kv_heads"] * layer["head_dim"] for layer in model.config["layers"]) * n
    values = np.random.default_rng(1).normal(size=min(numbers, 1 << 22)).astype(np.float16)
    return bytes(head) + np.resize(values, numbers).tobytes()


def measure(model: Any, context: Any, depth: int, tokens: int) -> tuple[float, float, float]:
    """Seconds of a token behind the slot's positions: the least, since other work on the machine only adds, and the median; the least of
    its attention."""
    token, times, attention = np.zeros(1, np.int32), [], []
    context.profile(True)
    for i in range(tokens):
        begun = time.perf_counter()
        context.eval(token, depth + i, 0)
        times.append(time.perf_counter() - begun)
        attention.append(context.profile(True).get("attention", 0.0))
    context.profile(False)
    return min(times), median(times), min(attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--depth", default="0,2048,8192,32768")
    parser.add_argument("--cache", default=",".join(CHOICES))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    model = _core.Model(args.model, device=device(-1 if args.gpu else 0, args.model), threads=args.threads)
    layers = model.config["layers"]
    print(f"{Path(args.model).name}, {model.backend}\n")
    print("| depth | cache | ms a token | median | attention | GB/s | bytes a token | of the table's |\n|---|---|---|---|---|---|---|---|")
    for depth in map(int, args.depth.split(",")):
        state = random_state(model, depth) if depth else b""
        for cache in args.cache.split(","):
            room = args.tokens + 8
            sizes = [_core.Context(model, n_ctx=n, n_batch=1, cache=cache).memory_bytes for n in (4096, 8192)]
            grows = (sizes[1] - sizes[0]) / 4096
            table = sum(_core.cached_bytes(cache, layer["head_dim"]) * layer["n_kv_heads"] for layer in layers)
            context = _core.Context(model, n_ctx=depth + room, n_batch=16, cache=cache)
            if depth:
                context.load(0, context.convert(state, depth, "auto"))
            seconds, middle, attention = measure(model, context, depth, args.tokens)
            context.close()
            rate = f"{grows * depth / attention / 1e9:.1f}" if depth and attention else ""
            times = " | ".join(f"{1e3 * each:.2f}" for each in (seconds, middle, attention))
            print(f"| {depth} | {cache} | {times} | {rate} | {grows:,.0f} | {grows / table:.1%} |", flush=True)


if __name__ == "__main__":
    main()

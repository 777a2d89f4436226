"""Greedy tokens of a packed model on Metal (on Linux its emulator, which TQ_METAL_EMULATOR names) beside the CPU's.

    python benchmarks/metal_greedy.py FILE [--tokens 128] [--precision f32]

Prints how many are the same, and how far the logits of the two best tokens are apart while they are. Exits with 1 where the texts part.
"""

import argparse
import time

import numpy as np

from turboquant_native import _core

PROMPT = np.array([504, 3575, 282, 4649, 314, 253, 1789, 282], np.int32)  # any tokens do


def greedy(path: str, device: str, precision: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (n), and the two best logits at each (n, 2)."""
    context = _core.Context(_core.Model(path, device=device, precision=precision), n_ctx=max(256, len(PROMPT) + n))
    start, tokens, logits = time.time(), [], []
    best = context.eval_best(PROMPT, 0)
    for i in range(n):
        tokens.append(int(best[0]["token"]))
        logits.append(best["logit"][:2].copy())
        best = context.eval_best(np.array(tokens[-1:], np.int32), len(PROMPT) + i)
    print(f"{device}: {time.time() - start:.1f} s", flush=True)
    return np.array(tokens), np.array(logits)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", choices=("f32", "int8"), default="f32", help="of activations")
    args = parser.parse_args()
    (cpu, cpu_logits), (metal, metal_logits) = (greedy(args.file, device, args.precision, args.tokens) for device in ("cpu", "metal"))
    same = int((np.append(cpu != metal, True)).argmax())
    difference = np.abs(cpu_logits - metal_logits)[:same].max(initial=0)
    print(f"{same} of {args.tokens} tokens are the same, their two best logits within {difference:.3g}")
    if same < args.tokens:
        print(f"there the CPU's two best are {cpu_logits[same, 0] - cpu_logits[same, 1]:.3g} apart")
    return int(same < args.tokens)


if __name__ == "__main__":
    raise SystemExit(main())

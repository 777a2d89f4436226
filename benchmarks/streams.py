"""One, two and eight streams of one `Llama`: tokens/s together, time to the first token, memory.

    python benchmarks/streams.py MODEL [--threads N] [--rounds 3] [--ctx 2048]

Prints Markdown: medians over the rounds. The streams are read by a thread each; prompts of 256 tokens, 48 tokens generated.
"""

import argparse
import resource
import threading
import time
from statistics import median

import numpy as np

from turboquant_native import Llama

PROMPT, GENERATED = 256, 48


def read(llm: Llama, prompt: list[int], start: float, out: list[tuple[float, float]]) -> None:
    """One stream: (seconds to the first text, seconds to the end)."""
    first = 0.0
    options = {"max_tokens": GENERATED, "temperature": 0.0, "logit_bias": {token: -100.0 for token in llm.vocabulary.end_tokens}}
    for _ in llm(prompt, stream=True, **options):
        first = first or time.perf_counter() - start
    out.append((first, time.perf_counter() - start))


def resident() -> float:
    """MB that the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def together(llm: Llama, prompts: list[list[int]]) -> list[tuple[float, float]]:
    """Streams at the same time."""
    out: list[tuple[float, float]] = []
    start = time.perf_counter()
    threads = [threading.Thread(target=read, args=(llm, prompt, start, out)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ctx", type=int, default=2048)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| streams | tokens/s together | first token, median s | all done, s | resident MB |\n|---|---|---|---|---|")
    for count in (1, 2, 8):
        rates, firsts, ends = [], [], []
        with Llama(args.model, n_ctx=args.ctx, n_threads=args.threads, verbose=False) as llm:
            for _ in range(args.rounds):
                prompts = [rng.integers(100, llm.n_vocab() - 100, PROMPT).tolist() for _ in range(count)]
                times = together(llm, prompts)
                end = max(seconds for _, seconds in times)
                rates.append(count * GENERATED / end)
                firsts.append(median(first for first, _ in times))
                ends.append(end)
            memory = resident()
        print(f"| {count} | {median(rates):.1f} | {median(firsts):.2f} | {median(ends):.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()

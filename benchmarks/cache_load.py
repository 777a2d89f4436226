"""Precision that follows the load, against caches of one type in the same bytes: how many prompt tokens are found, and what that costs.

    python benchmarks/cache_load.py MODEL --text FILE [--megabytes 32] [--conversations 24] [--turns 4] [--threads N]

Conversations are pieces of the text that grow turn by turn. A replay has three phases: few of them, all of them in a fixed shuffled order,
few again. Each policy gets the same requests and the same bytes. Prints Markdown: requests of which at least half the earlier turns were
found, prompt tokens found, the mean KL divergence (nats) of the last positions from those of an empty float16 cache, and where prefixes
stood at the end.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import Llama
from turboquant_native.engine.work import Evaluation
from turboquant_native.evaluate.evaluation import divergence, normalize

FEW, OPENING, TURN, ROWS = 3, 384, 96, 8


def requests(conversations: int, turns: int) -> list[tuple[str, int, int]]:
    """(phase, conversation, turn) in the order of the replay."""
    order: list[tuple[str, int, int]] = []
    at = dict.fromkeys(range(conversations), 0)

    def go(phase: str, conversation: int) -> None:
        order.append((phase, conversation, at[conversation]))
        at[conversation] += 1

    rng = np.random.default_rng(3)
    for phase, count, rounds in (("few", FEW, 2), ("all", conversations, turns), ("few again", FEW, 2)):
        for _ in range(rounds):
            for conversation in rng.permutation(count):
                go(phase, int(conversation))
    return order


def rows_of(llm: Llama, tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """Log-probabilities of the last positions, and how many tokens were in the cache."""
    handle = llm.engine.scheduler.submit(Evaluation(tokens, ROWS))
    handle.wait()
    return normalize(handle.work.rows.astype(np.float32)), handle.cached_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=32, help="of all caches (%(default)s)")
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    budget = int(args.megabytes * 1e6)
    length = OPENING + TURN * (args.turns + 4)
    options: dict[str, Any] = {"n_ctx": length, "n_threads": args.threads, "verbose": False}

    order = requests(args.conversations, args.turns)
    with Llama(args.model, **options) as llm:
        text = np.array(llm.tokenize(args.text.read_bytes()), np.intc)
        if len(text) < args.conversations * length:
            parser.error(f"{args.text} has {len(text)} tokens, {args.conversations * length} are needed")
        prompt = {(c, t): text[c * length : c * length + OPENING + TURN * t] for _, c, t in order}
        per_sequence = {}
        exact = {}
        for key, tokens in prompt.items():
            llm.engine.scheduler.forget()
            exact[key] = rows_of(llm, tokens)[0].astype(np.float16)
        per_sequence["f16"] = llm.engine.context.state_bytes(length)
    with Llama(args.model, type_k=8, type_v=8, **options) as llm:
        per_sequence["k8v8"] = llm.engine.context.state_bytes(length)

    def slots(cache: str) -> int:
        return max(1, budget // per_sequence[cache])

    policies: dict[str, dict[str, Any]] = {
        f"f16, {slots('f16')} slots": {"n_slots": slots("f16")},
        f"k8v8, {slots('k8v8')} slots": {"n_slots": slots("k8v8"), "type_k": 8, "type_v": 8},
        "f16 with a budget, forgetting only": {"n_slots": 2, "cache_budget": budget},
        "f16 with a budget": {"n_slots": 2, "cache_budget": budget},
    }
    print(f"{args.conversations} conversations, {len(order)} requests, {budget / 1e6:.0f} MB; one sequence at its end: ", end="")
    print(f"{per_sequence['f16'] / 1e6:.1f} MB in f16, {per_sequence['k8v8'] / 1e6:.1f} MB in k8v8\n")
    print("| policy | phase | requests | served from the cache | tokens found | KLD | prefixes kept beside the slots | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, policy in policies.items():
        with Llama(args.model, **options, **policy) as llm:
            scheduler = llm.engine.scheduler
            scheduler.reserve(policy["n_slots"])
            if "forgetting" in name:
                scheduler.budget.levels = scheduler.budget.levels[:1]
            phases: dict[str, list[tuple[bool, int, int, float, float]]] = {}
            standing = {}
            for phase, conversation, turn in order:
                tokens = prompt[conversation, turn]
                begun = time.perf_counter()
                rows, cached = rows_of(llm, tokens)
                seconds = time.perf_counter() - begun
                kld = float(divergence(exact[conversation, turn].astype(np.float32), rows).mean())
                served = turn > 0 and 2 * cached >= len(tokens) - TURN
                phases.setdefault(phase, []).append((served, cached, len(tokens), kld, seconds))
                kept = llm.cache_stats()["kept"]
                standing[phase] = ", ".join(f"{found['prefixes']} {level}" for level, found in kept.items() if found["prefixes"])
            for phase, found in phases.items():
                served, cached, total, klds, seconds = zip(*found, strict=True)
                print(
                    f"| {name} | {phase} | {len(found)} | {sum(served)} | {sum(cached) / sum(total):.0%} | {np.mean(klds):.4f} | "
                    f"{standing[phase]} | {sum(seconds):.1f} |"
                )


if __name__ == "__main__":
    main()

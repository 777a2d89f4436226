"""What a quantized key/value cache costs at length: KL divergence from the model's own float16 cache at several depths of a real text, for
whole prompts and token by token, and a sentence that is to be found again in a long text.

    python benchmarks/cache_quality.py MODEL --text FILE [--depth 2048,8192] [--cache k8v8,k8v4] [--windows 2] [--precision f32] [--gpu]
    python benchmarks/cache_quality.py MODEL --text FILE --needle --depth 4096,32768 [--gpu]

Prints Markdown. KLD in nats over the last --rows positions before each depth; "by token": the last 32 of them computed one at a time.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import Llama, _core
from turboquant_native.engine.cache_types import CHOICES, types_of
from turboquant_native.engine.devices import device
from turboquant_native.engine.vocabulary import Vocabulary
from turboquant_native.evaluate.evaluation import divergence, normalize

BY_TOKEN = 32
NEEDLE, QUESTION, ANSWER = "The secret number of the harbour master is 48213.", "What is the secret number of the harbour master?", "48213"
PLACES = (0.1, 0.5, 0.9)


def rows_at(model: Any, cache: str, tokens: np.ndarray, depths: list[int], rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities of the last rows before each depth, and of the last few of these computed one at a time."""
    context = _core.Context(model, n_ctx=max(depths), n_batch=512, cache=cache)
    found, at = [], 0
    for depth in depths:
        context.eval(tokens[at : depth - rows], at, 0, "none")
        whole = normalize(context.eval(tokens[depth - rows : depth], depth - rows, 0, "all"))
        singles = [context.eval(tokens[i : i + 1], i, 0, "all") for i in range(depth - BY_TOKEN, depth)]
        found.append((whole, normalize(np.concatenate(singles))))
        at = depth
    context.close()
    return found


def divergences(args: argparse.Namespace, caches: list[str], depths: list[int]) -> None:
    model = _core.Model(args.model, device=device(-1 if args.gpu else 0, args.model), threads=args.threads, precision=args.precision)
    vocabulary = Vocabulary(model.file.metadata, len(model.file.metadata["tokenizer.ggml.tokens"]))
    text = np.array(vocabulary.encode(args.text.read_text(encoding="utf-8")), np.int32)
    found: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for window in range(args.windows):
        tokens = text[window * max(depths) : (window + 1) * max(depths)]
        if len(tokens) < max(depths):
            raise SystemExit(f"{args.text} has {len(text)} tokens, {(window + 1) * max(depths)} are needed")
        reference = rows_at(model, "f16", tokens, depths, args.rows)
        for cache in caches:
            for depth, exact, coded in zip(depths, reference, rows_at(model, cache, tokens, depths, args.rows), strict=True):
                whole, single = (divergence(a, b) for a, b in zip(exact, coded, strict=True))
                same = exact[0].argmax(axis=1) == coded[0].argmax(axis=1)
                found.setdefault((cache, depth), []).append((whole, single, same))
    print(f"{Path(args.model).name}, {model.backend}, {args.precision}\n")
    print(
        "| cache | depth | positions | KLD, prompts | median | 99 % | KLD by token | same first token |\n|---|---|---|---|---|---|---|---|"
    )
    for (cache, depth), parts in found.items():
        whole, single, same = (np.concatenate(column) for column in zip(*parts, strict=True))
        print(
            f"| {cache} | {depth} | {len(whole)} | {whole.mean():.4f} | {np.median(whole):.4f} | {np.quantile(whole, 0.99):.3f} | "
            f"{single.mean():.4f} | {same.mean():.1%} |"
        )


def needle(args: argparse.Namespace, caches: list[str], depths: list[int]) -> None:
    print(f"{Path(args.model).name}: the sentence was found, of {len(PLACES)} places (10, 50, 90 %)\n")
    print(f"| cache | {' | '.join(map(str, depths))} |\n|---|{'---|' * len(depths)}")
    for cache in caches:
        type_k, type_v = types_of(cache)
        cells = []
        options: dict[str, Any] = {"n_gpu_layers": -1 if args.gpu else 0, "n_threads": args.threads or None, "verbose": False}
        with Llama(args.model, n_ctx=max(depths), type_k=type_k, type_v=type_v, precision=args.precision, **options) as llm:
            hay = llm.tokenize(args.text.read_bytes())
            for depth in depths:
                hits = 0
                for place in PLACES:
                    text = llm.detokenize(hay[: depth - 160]).decode("utf-8", "ignore")
                    cut = text.index(" ", int(place * len(text)))
                    content = f"{text[:cut]} {NEEDLE}{text[cut:]}\n\n{QUESTION} Answer with the number."
                    answer = llm.create_chat_completion([{"role": "user", "content": content}], max_tokens=24, temperature=0)
                    hits += ANSWER in answer["choices"][0]["message"]["content"]
                cells.append(f"{hits}/{len(PLACES)}")
        print(f"| {cache} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--depth", default="2048,4096,8192")
    parser.add_argument("--cache", help=f"of {', '.join(CHOICES)} (default: all)")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--needle", action="store_true")
    args = parser.parse_args()
    depths = sorted(int(part) for part in args.depth.split(","))
    caches = args.cache.split(",") if args.cache else list(CHOICES)
    if args.needle:
        needle(args, caches, depths)
    else:
        divergences(args, [cache for cache in caches if cache != "f16"], depths)


if __name__ == "__main__":
    main()

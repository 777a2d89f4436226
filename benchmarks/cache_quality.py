"""What a quantized key/value cache costs at length: KL divergence from the model's own float16 cache at several depths of a real text, for
whole prompts and token by token, and sentences that are to be found again in it.

    python benchmarks/cache_quality.py MODEL --text FILE [--depth 2048,8192] [--cache k8v8,k8v4] [--windows 2] [--precision f32] [--gpu]
    python benchmarks/cache_quality.py MODEL --text FILE --needles --depth 4096,8192,16384,32768

Prints Markdown, a row as soon as it is known. KLD in nats over the last --rows positions before each depth; "by token": the last --singles
of them computed one at a time. --needles: at 10, 50 and 90 % of each of up to six depths a sentence "The secret number of the ... is
48213." is put into the text; behind each depth the model goes on, greedily, from "The secret number of the ... is" for every sentence
before it. --convert: only the float16 cache reads the whole text; before the last --rows positions of each depth the others take over what
it holds, in their types.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import _core
from turboquant_native.engine.cache_types import CHOICES
from turboquant_native.engine.devices import device
from turboquant_native.engine.vocabulary import Vocabulary
from turboquant_native.evaluate.evaluation import divergence, normalize

PLACES = (0.1, 0.5, 0.9)
NAMES = [
    "harbour master",
    "old lighthouse",
    "night train",
    "glass factory",
    "botanist",
    "northern bridge",
    "clockmaker",
    "city archive",
    "baker",
    "post office",
    "river pilot",
    "observatory",
    "tailor",
    "salt mine",
    "winter garden",
    "ferryman",
    "printing house",
    "beekeeper",
]
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Needle:
    name: str
    number: str
    end: int  # of its sentence in the text, in tokens


def with_needles(vocabulary: Vocabulary, text: np.ndarray, depths: list[int]) -> tuple[np.ndarray, list[Needle]]:
    """The text's tokens with a sentence at every place of every depth."""
    rng, needles = np.random.default_rng(1), []
    for at, name in zip(sorted(int(place * depth) for place in PLACES for depth in depths), NAMES, strict=False):
        number = str(rng.integers(10_000, 100_000))
        sentence = vocabulary.encode(f" The secret number of the {name} is {number}. ", False)
        text = np.concatenate([text[:at], np.array(sentence, np.int32), text[at:]])
        needles.append(Needle(name, number, at + len(sentence)))
    return text, needles


class Reader:
    """One type of cache on its way through a text."""

    def __init__(self, model: Any, vocabulary: Vocabulary, cache: str, n_ctx: int) -> None:
        self.context = _core.Context(model, n_ctx=n_ctx, n_batch=512, cache=cache)
        self.vocabulary, self.at = vocabulary, 0

    def take_over(self, other: "Reader", n: int) -> None:
        """The other's first n positions, in this one's type of cache."""
        self.context.load(0, self.context.convert(other.context.save(0, n), n, "auto"))
        self.at = n

    def advance(self, tokens: np.ndarray, depth: int, rows: int, n_singles: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the last rows before `depth`, and of the last few of these computed one at a time."""
        if self.at < depth - rows:
            self.context.eval(tokens[self.at : depth - rows], self.at, 0, "none")
        whole = normalize(self.context.eval(tokens[depth - rows : depth], depth - rows, 0, "all"))
        singles = [self.context.eval(tokens[i : i + 1], i, 0, "all") for i in range(depth - n_singles, depth)]
        self.at = depth
        return whole, normalize(np.concatenate(singles))

    def finds(self, needle: Needle) -> bool:
        prompt = self.vocabulary.encode(f"\n\nThe secret number of the {needle.name} is", False)
        tokens, at, answer = np.array(prompt, np.int32), self.at, []
        for _ in range(ANSWER_TOKENS):
            logits = self.context.eval(tokens, at, 0, "last")
            at += len(tokens)
            tokens = np.array([logits.argmax()], np.int32)
            answer.append(int(tokens[0]))
        return needle.number.encode() in self.vocabulary.decode(answer)


def cells(exact: tuple[np.ndarray, np.ndarray], coded: tuple[np.ndarray, np.ndarray]) -> str:
    whole, single = (divergence(a, b) for a, b in zip(exact, coded, strict=True))
    same = (exact[0].argmax(axis=1) == coded[0].argmax(axis=1)).mean()
    return f"{whole.mean():.4f} | {np.median(whole):.4f} | {np.quantile(whole, 0.99):.3f} | {single.mean():.4f} | {same:.1%}"


def read(args: argparse.Namespace, model: Any, vocabulary: Vocabulary, tokens: np.ndarray, needles: list[Needle], window: int) -> None:
    readers = {cache: Reader(model, vocabulary, cache, max(args.depths) + 64) for cache in ["f16", *args.caches]}
    for depth in args.depths:
        asked, exact = [needle for needle in needles if needle.end <= depth], None
        for cache, reader in readers.items():
            if args.convert and cache != "f16":
                reader.take_over(readers["f16"], depth - args.rows)
            rows = reader.advance(tokens, depth, args.rows, args.singles)
            exact = rows if exact is None else exact
            found = f"{sum(map(reader.finds, asked))} of {len(asked)}" if asked else ""
            print(f"| {cache} | {depth} | {window} | {len(rows[0])} | {cells(exact, rows)} | {found} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--depth", default="2048,4096,8192")
    parser.add_argument("--cache", default=",".join(CHOICES), help="default: %(default)s")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--singles", type=int, default=32, help="at most --rows")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--needles", action="store_true")
    parser.add_argument("--convert", action="store_true")
    args = parser.parse_args()
    args.depths = sorted(int(part) for part in args.depth.split(","))
    args.caches = [cache for cache in args.cache.split(",") if cache != "f16"]
    model = _core.Model(args.model, device=device(-1 if args.gpu else 0, args.model), threads=args.threads, precision=args.precision)
    vocabulary = Vocabulary(model.file.metadata, len(model.file.metadata["tokenizer.ggml.tokens"]))
    text, most = np.array(vocabulary.encode(args.text.read_text(encoding="utf-8")), np.int32), max(args.depths)
    if len(text) < args.windows * most:
        raise SystemExit(f"{args.text} has {len(text)} tokens, {args.windows * most} are needed")
    print(f"{Path(args.model).name}, {model.backend}, {args.precision}\n")
    print("| cache | depth | window | positions | KLD, prompts | median | 99 % | KLD by token | same first token | sentences found |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for window in range(args.windows):
        tokens, needles = text[window * most : (window + 1) * most], []
        if args.needles:
            tokens, needles = with_needles(vocabulary, tokens, args.depths)
        read(args, model, vocabulary, tokens, needles, window)


if __name__ == "__main__":
    main()

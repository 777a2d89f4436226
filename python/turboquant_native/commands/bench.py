"""`tqn bench`: prompt and generation speed of a model, or of random weights in a known model's shape.

pp512: a prompt of 512 tokens from an empty cache; tg128: 128 tokens one by one from an empty cache; medians of the repeats. GB/s is the
bytes of weights that one token must read times tg, to be compared with the machine's memory bandwidth.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.cache_types import CHOICES

if TYPE_CHECKING:
    from ..evaluate.bench import Speed


EXAMPLES = """
  tqn bench model.tqn.gguf
  tqn bench model.tqn.gguf -t 1,2,4 --batch 4,16
  tqn bench model.tqn.gguf --depth 0,8192 --cache f16,k8v4
  tqn bench --synthetic llama-3.2-1b --bits 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("file", nargs="?", help="model file")
    parser.add_argument(
        "--synthetic", metavar="SHAPE", help="random weights of a shape instead: smollm2-135m, qwen2.5-0.5b, llama-3.2-1b, ..."
    )
    parser.add_argument("--bits", type=int, default=3, help="width of synthetic layers (%(default)s)")
    parser.add_argument("--embed-bits", type=int, default=8, help="width of synthetic embeddings (%(default)s)")
    parser.add_argument("-t", "--threads", default="0", metavar="N,...", help="thread counts, one row each (default: this process's cores)")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt (%(default)s)")
    parser.add_argument("-n", "--generate", type=int, default=128, help="tokens to generate (%(default)s)")
    parser.add_argument("-r", "--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batch", metavar="N,...", help="also generate so many sequences at once, one row each")
    parser.add_argument("--depth", metavar="N,...", help="also generate behind so many cached tokens, one row each")
    parser.add_argument(
        "--cache", metavar="TYPE,...", default="f16", help=f"of --depth: {', '.join(CHOICES)}; one row each (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="activations of packed matrices (%(default)s)")
    parser.add_argument("--gpu", action="store_true", help="run on a GPU")
    parser.add_argument("--profile", action="store_true", help="also show where the time of generation goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    if (args.file is None) == (args.synthetic is None):
        raise ValueError("give a model file or --synthetic SHAPE")
    if min(args.prompt, args.generate, args.repeats) < 1:
        raise ValueError("-p, -n and -r must be positive")
    if args.file is not None:
        return _bench(args.file, args.file, args)
    with tempfile.TemporaryDirectory(prefix="tqn-bench-") as folder:
        path = Path(folder) / "model.gguf"
        _write_synthetic(path, args)
        return _bench(str(path), f"{args.synthetic} {args.bits} bits", args)


def _write_synthetic(path: Path, args: argparse.Namespace) -> None:
    from ..convert import synthetic

    if args.synthetic not in synthetic.SHAPES:
        raise ValueError(f"unknown shape {args.synthetic!r}; known: {', '.join(synthetic.SHAPES)}")
    synthetic.write(path, synthetic.SHAPES[args.synthetic], args.bits, args.embed_bits)


def _bench(path: str, name: str, args: argparse.Namespace) -> int:
    from ..evaluate.bench import Bench, Settings

    batch = tuple(_numbers(args.batch)) if args.batch else ()
    depths, caches = tuple(_numbers(args.depth)) if args.depth else (), tuple(args.cache.split(","))
    if caches != ("f16",) and not depths:
        raise ValueError(f"--cache {args.cache} goes with --depth")
    if min(depths, default=0) < 0:
        raise ValueError(f"--depth {args.depth}: give 0 or more")
    if unknown := sorted(set(caches) - set(CHOICES)):
        raise ValueError(f"--cache {unknown[0]}: not one of {', '.join(CHOICES)}")
    settings = Settings(args.prompt, args.generate, args.repeats, batch, args.precision, args.gpu, args.profile, depths, caches)
    rows = []
    for threads in _numbers(args.threads):
        bench = Bench(path, threads, settings)
        try:
            rows.append(bench.measure(name))
            if not args.json:
                print(_header(args) if len(rows) == 1 else "", end="")
                print(_line(rows[-1]), flush=True)
            extra = bench.extras()
        finally:
            bench.close()
        if not args.json:
            _print_extras(extra)
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], **extra}))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers such as 1,2") from None


_NAME, _BACKEND = 15, 10  # characters; a row has 80


def _short(name: str, length: int) -> str:
    """The beginning and the end, where a model's name says its width."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}~{name[len(name) - (length - length // 2) :]}"


def _header(args: argparse.Namespace) -> str:
    rates = [f"{f'pp{args.prompt} t/s':>10}", f"{f'tg{args.generate} t/s':>10}"]
    return " ".join([f"{'model':{_NAME}}", f"{'backend':{_BACKEND}}", "thr", *rates, f"{'GB/s':>5}", "ttft s", "load s", "peak MB"]) + "\n"


def _line(row: "Speed") -> str:
    name = os.path.basename(row.model)
    return (
        f"{_short(name, _NAME):{_NAME}} {row.backend[:_BACKEND]:{_BACKEND}} {row.threads:>3} {row.pp:>10.1f} {row.tg:>10.1f} "
        f"{row.gigabytes_per_second:>5.1f} {row.ttft:>6.3f} {row.load:>6.3f} {row.peak_memory / 1e6:>7.0f}"
    )


def _print_extras(extra: dict[str, Any]) -> None:
    for row in extra.get("depth", []):
        prompt = f"prompt {row['prompt']:.1f} t/s, " if row["depth"] else ""
        size = row["context_bytes"] / 1e6
        print(f"  {row['depth']} cached, {row['cache']}: {prompt}generation {row['generation']:.1f} t/s, context {size:.0f} MB")
    for count, rate in extra.get("batch", {}).items():
        print(f"  {count} sequences at once: {rate:.1f} tokens/s together")
    profile = extra.get("profile", {})
    total = sum(profile.values())
    for name, seconds in sorted(profile.items(), key=lambda entry: -entry[1]):
        print(f"  {name:12} {seconds * 1e3:10.2f} ms {100 * seconds / total:6.1f} %")

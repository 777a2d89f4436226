"""`tqn bench`: prompt and generation speed of a model, or of random weights in a known model's shape.

pp512: a prompt of 512 tokens from an empty cache; tg128: 128 tokens one by one from an empty cache; medians of the repeats. GB/s is the
bytes of weights that one token must read times tg, to be compared with the machine's memory bandwidth.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .memory import peak_memory


@dataclass(frozen=True)
class Speed:
    """One row: rates in tokens/s, times in seconds, memory in bytes. `prompt` and `generated` are the token counts of pp and tg."""

    model: str
    backend: str
    precision: str
    threads: int
    prompt: int
    generated: int
    pp: float
    tg: float
    gigabytes_per_second: float
    ttft: float
    load: float
    weight_bytes: int
    peak_memory: int


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
    from . import synthetic

    if args.synthetic not in synthetic.SHAPES:
        raise ValueError(f"unknown shape {args.synthetic!r}; known: {', '.join(synthetic.SHAPES)}")
    synthetic.write(path, synthetic.SHAPES[args.synthetic], args.bits, args.embed_bits)


def _bench(path: str, name: str, args: argparse.Namespace) -> int:
    rows = []
    for threads in _numbers(args.threads):
        bench = Bench(path, threads, args)
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


class Bench:
    """One model with one number of threads."""

    def __init__(self, path: str, threads: int, args: argparse.Namespace) -> None:
        from . import _core
        from .arguments import device

        self._core, self._args = _core, args
        self.threads = threads or _core.cpu_count()
        start = time.perf_counter()
        self.model = _core.Model(path, device=device(-1 if args.gpu else 0, path), threads=threads, precision=args.precision)
        self.context = _core.Context(self.model, n_ctx=args.prompt + args.generate, n_batch=512)
        self.load = time.perf_counter() - start
        self._tokens = np.random.default_rng(1).integers(0, self.context.n_vocab, args.prompt + args.generate).astype(np.int32)

    def prompt(self) -> None:
        """One prompt from an empty cache."""
        self.context.eval(self._tokens[: self._args.prompt], 0)

    def generate(self) -> None:
        """Tokens one by one from an empty cache."""
        for position in range(self._args.generate):
            self.context.eval(self._tokens[position : position + 1], position)

    def measure(self, name: str) -> Speed:
        """The row of this model."""
        args = self._args
        prompt_seconds = _median_seconds(self.prompt, args.repeats)
        generate_seconds = _median_seconds(self.generate, args.repeats)
        tg = args.generate / generate_seconds
        return Speed(
            model=name,
            backend=self.model.backend,
            precision=args.precision,
            threads=self.threads,
            prompt=args.prompt,
            generated=args.generate,
            pp=args.prompt / prompt_seconds,
            tg=tg,
            gigabytes_per_second=self.model.weight_bytes * tg / 1e9,
            ttft=prompt_seconds,
            load=self.load,
            weight_bytes=self.model.weight_bytes,
            peak_memory=peak_memory(),
        )

    def extras(self) -> dict[str, Any]:
        """What was asked for besides: tokens/s of several sequences together, profile."""
        found: dict[str, Any] = {}
        if self._args.batch:
            found["batch"] = {count: self._throughput(count) for count in _numbers(self._args.batch)}
        if self._args.profile:
            found["profile"] = self._profile()
        return found

    def _profile(self) -> dict[str, float]:
        """Seconds of each kind of work over one generation, tokens drawn with the default options; "rest" is what passes do not count:
        waking threads and the calls from Python."""
        context, sampler, drawing = self.context, self._core.Sampler(seed=1), 0.0
        best_suffice = sampler.needed_candidates(context.n_vocab) > 0
        context.profile(True)
        start = time.perf_counter()
        for position in range(self._args.generate):
            token = self._tokens[position : position + 1]
            if best_suffice:
                draw = partial(sampler.sample_best, context.eval_best(token, position))
            else:
                draw = partial(sampler.sample, context.eval(token, position), [])
            drawn = time.perf_counter()
            draw()
            drawing += time.perf_counter() - drawn
        total = time.perf_counter() - start
        seconds: dict[str, float] = context.profile(False)
        seconds["sampler"] = seconds.get("sampler", 0.0) + drawing
        seconds["rest"] = total - sum(seconds.values())
        return seconds

    def _throughput(self, count: int) -> float:
        """Tokens/s of `count` sequences that generate together."""
        context = self._core.Context(self.model, n_ctx=self._args.generate, n_slots=count, n_batch=max(count, 16))
        rows = np.arange(count, dtype=np.int32)

        def generate() -> None:
            for position in range(self._args.generate):
                context.forward(self._tokens[:1].repeat(count), np.full(count, position, np.int32), rows, rows)

        try:
            return float(count * self._args.generate / _median_seconds(generate, self._args.repeats))
        finally:
            context.close()

    def close(self) -> None:
        """Frees everything."""
        self.context.close()
        self.model.close()


def _median_seconds(work: Callable[[], None], repeats: int) -> float:
    """Median time of `repeats` runs after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def _header(args: argparse.Namespace) -> str:
    rates = [f"{f'pp{args.prompt} t/s':>11}", f"{f'tg{args.generate} t/s':>11}"]
    return " ".join([f"{'model':28}", f"{'backend':18}", "threads", *rates, "  GB/s", " ttft s", " load s", " peak MB"]) + "\n"


def _line(row: Speed) -> str:
    name = os.path.basename(row.model)
    return (
        f"{name[:28]:28} {row.backend[:18]:18} {row.threads:>7} {row.pp:>11.1f} {row.tg:>11.1f} {row.gigabytes_per_second:>6.1f} "
        f"{row.ttft:>7.3f} {row.load:>7.3f} {row.peak_memory / 1e6:>8.0f}"
    )


def _print_extras(extra: dict[str, Any]) -> None:
    for count, rate in extra.get("batch", {}).items():
        print(f"  {count} sequences at once: {rate:.1f} tokens/s together")
    profile = extra.get("profile", {})
    total = sum(profile.values())
    for name, seconds in sorted(profile.items(), key=lambda entry: -entry[1]):
        print(f"  {name:12} {seconds * 1e3:10.2f} ms {100 * seconds / total:6.1f} %")

"""Models with recurrent layers and mixtures: prompt and decoding beside the limit that memory sets. Prints a table.

    python benchmarks/recurrent.py [--shapes qwen3.5-0.8b,qwen3.5-9b,gpt-oss-20b] [--bits 4] [--gpu] [--threads N] [--batch 8,32]
                                   [--prompt 512] [--generate 64] [--rounds 3] [--bandwidth GB/S] [--work FOLDER] [--alone] [--layers N]

Models of random weights are written as TQN files, all matrices at --bits. A token must read the weights (of a mixture the experts that it
uses) and read and write the recurrent states: bytes / bandwidth is the least time. Bandwidth is measured in the same run, reading on a CPU,
a copy (read + written) by PyTorch on a GPU, or given. "recurrent layers": the same shape's delta nets with their feed-forward parts and
nothing else. Tokens are chosen where the logits are, so that logits do not travel. --alone: only these.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from turboquant_native import _core
from turboquant_native.api.machine import memory_bandwidth
from turboquant_native.convert import synthetic
from turboquant_native.convert.synthetic_shapes import RecurrentShape, Shape
from turboquant_native.engine.devices import device

COLUMNS = ("model", "bits", "pp t/s", "tg t/s", "ms", "MB a token", "GB/s", "% of limit")


def gpu_bandwidth() -> float:
    """Bytes a second that a copy within the device reads and writes."""
    import torch

    a = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    b = torch.empty_like(a)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        b.copy_(a)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * a.numel() * 4 / median(times[2:])


def median_seconds(work: Callable[[], None], rounds: int) -> float:
    """Of `rounds` runs after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times[1:])


class Run:
    """One model file on one device."""

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        self._args = args
        self.model = _core.Model(str(path), device=device(-1 if args.gpu else 0, str(path)), threads=args.threads)
        self._tokens = np.random.default_rng(1).integers(0, 250, max(args.prompt, args.generate)).astype(np.int32)

    def prompt(self) -> float:
        """Tokens/s of a prompt from an empty cache."""
        n = self._args.prompt
        context = _core.Context(self.model, n_ctx=n, n_batch=n)
        seconds = median_seconds(lambda: context.eval_best(self._tokens[:n], 0), self._args.rounds)
        context.close()
        return n / seconds

    def decode(self, count: int) -> float:
        """Seconds of a pass that gives `count` sequences one token each."""
        n = self._args.generate
        context = _core.Context(self.model, n_ctx=n, n_slots=count, n_batch=max(count, 16))
        rows = np.arange(count, dtype=np.int32)

        def generate() -> None:
            for position in range(n):
                token = self._tokens[position : position + 1]
                if count == 1:
                    context.eval_best(token, position)
                else:
                    context.forward_best(token.repeat(count), np.full(count, position, np.int32), rows, rows)

        seconds = median_seconds(generate, self._args.rounds)
        context.close()
        return seconds / n

    def profile(self, prompt: bool) -> str:
        """Where the time of a prompt or of decoding goes, where the backend tells."""
        n, step = (self._args.prompt, self._args.prompt) if prompt else (self._args.generate, 1)
        context = _core.Context(self.model, n_ctx=n, n_batch=n)
        context.eval_best(self._tokens[:step], 0)
        context.profile(True)
        for position in range(0, n, step):
            context.eval_best(self._tokens[position : position + step], position)
        found = context.profile(False)
        context.close()
        total = sum(found.values()) or 1.0
        return ", ".join(f"{kind} {100 * seconds / total:.1f} %" for kind, seconds in sorted(found.items(), key=lambda e: -e[1]))


def rows(name: str, shape: Shape, path: Path, args: argparse.Namespace, bandwidth: float) -> list[str]:
    synthetic.write(path, shape, args.bits, args.bits)
    run = Run(path, args)
    prompt, lines = run.prompt(), []
    for count in (1, *args.batch):
        seconds = run.decode(count)
        moved = run.model.weight_bytes + count * shape.state_bytes()
        label, first = (name, f"{prompt:.0f}") if count == 1 else (f"{name}, {count} sequences", "")
        share = 100 * moved / bandwidth / seconds
        cells = (label, args.bits, first, f"{count / seconds:.1f}", f"{1e3 * seconds:.3f}", f"{moved / 1e6:.1f}")
        lines.append("| " + " | ".join(map(str, (*cells, f"{moved / seconds / 1e9:.1f}", f"{share:.0f}"))) + " |")
        print(lines[-1], flush=True)
    for what in ("prompt", "decoding"):
        if profile := run.profile(what == "prompt"):
            print(f"{name}, {what}: {profile}", flush=True)
    run.model.close()
    path.unlink()
    return lines


def arguments() -> argparse.Namespace:
    names = lambda text: [part for part in text.split(",") if part]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=names, default=["qwen3.5-0.8b", "qwen3.5-9b", "gpt-oss-20b"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=lambda text: [int(part) for part in names(text)], default=[])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bandwidth", type=float, help="GB/s")
    parser.add_argument("--work", type=Path, help="where the models are written (default: a temporary folder)")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--layers", type=int, help="so many of the shape's layers, where memory does not hold all")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    measured = max(memory_bandwidth(0.5) for _ in range(3)) if not args.gpu and not args.bandwidth else 0.0
    bandwidth = args.bandwidth * 1e9 if args.bandwidth else measured or gpu_bandwidth()
    print(f"bandwidth {bandwidth / 1e9:.1f} GB/s; {_core.isa()}, {args.threads or _core.cpu_count()} threads; medians of {args.rounds}")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = (args.work or Path(temporary)) / "shape.gguf"
        for name in args.shapes:
            shape = synthetic.SHAPES[name]
            shape = replace(shape, n_layers=args.layers or shape.n_layers)
            if not args.alone:
                rows(name, shape, path, args, bandwidth)
            if isinstance(shape, RecurrentShape):
                rows(f"{name}, recurrent layers", shape.recurrent_layers_alone(), path, args, bandwidth)


if __name__ == "__main__":
    main()

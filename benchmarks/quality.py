"""Loss against size of calibrated files, and what each stage of the calibration gains.

    python benchmarks/quality.py MODEL TEXT [--calib FILE] [--seeds 3] [--ablation]

The reference is the model as it stands in its source, in float32. Every case is converted once a seed and measured on the first 16
windows of 512 tokens of TEXT, the second half of each scored; the tables give means and the spread over the seeds, in Markdown.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from turboquant_native import _core, quantizer
from turboquant_native.conversion import Options, make_plan, write_model
from turboquant_native.evaluate import CachedReference, LiveReference, Scorer, evaluate, text_windows
from turboquant_native.quantizer import Quantizer, Request
from turboquant_native.sources import open_source

WINDOWS, CTX = 16, 512
REACH = (  # label, options, request
    *((f"linear layers {bits} bits, embeddings F16", Options(bits=bits, embed_bits=16), {}) for bits in (2, 3, 4)),
    *((f"whole file {bpw} bpw", Options(), {"bpw": bpw}) for bpw in (2.67, 3.0, 3.5, 4.25)),
)
ABLATION = (  # what is switched off or changed
    ("all of it", {}),
    ("no correction for changed inputs", {"cross": 0.0}),
    ("no repair of the residual stream", {"residual": 0.0}),
    ("neither", {"cross": 0.0, "residual": 0.0}),
    ("the whole of both", {"cross": 1.0, "residual": 1.0}),
    ("damping 0.003", {"damping": 0.003}),
    ("half the text", {"windows": 32}),
)


class Bench:
    """One model, one text, one cache of the stages that all cases share."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.source = open_source(args.model, None, None)
        write_model(self.source, make_plan(self.source, Options(outtype="f32")), folder / "reference.gguf")
        self.model = _core.Model(str(folder / "reference.gguf"), precision="f32", threads=args.threads)
        scorer = Scorer(self.model, CTX)
        self.windows = text_windows(scorer.vocabulary, args.text.read_text(), CTX, args.windows)
        self.reference = CachedReference.store(folder / "reference.npy", LiveReference(scorer, self.windows))
        scorer.close()

    def case(self, options: Options, settings: dict[str, float], **request: float) -> tuple[float, float, float]:
        """Mean and spread of the divergence over the seeds, and bits per weight."""
        found = []
        for seed in range(self.args.seeds):
            cache = None if settings else self.folder / f"cache{seed}"
            asked = Request(effort=self.args.effort, calib=self.args.calib, cache=cache, tuning=settings, **request)
            target = self.folder / "case.gguf"
            Quantizer(self.source, target, replace(options, seed=seed), asked, threads=self.args.threads).run(overwrite=True)
            file = _core.Model(str(target), precision="f32", threads=self.args.threads)
            result = evaluate(file, self.windows, self.reference)
            file.close()
            found.append((result.kld_mean, result.bpw))
        losses = [loss for loss, _ in found]
        return float(np.mean(losses)), float(np.std(losses)), found[0][1]


def table(head: tuple[str, ...], rows: list[tuple[str, Callable[[], tuple[float, float, float]]]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for label, measure in rows:
        start = time.monotonic()
        loss, spread, bpw = measure()
        print(f"| {label} | {loss:.4f} +- {spread:.4f} | {bpw:.3f} | {time.monotonic() - start:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, hub id or GGUF file")
    parser.add_argument("text", type=Path, help="text to measure on")
    parser.add_argument("--calib", type=Path, help="calibration text (default: the offline mix)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--effort", choices=tuple(quantizer.EFFORTS), default="normal")
    parser.add_argument("--ablation", action="store_true", help="the stages on and off, instead of the sizes")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        head = ("case", "KL divergence, nats a token", "bits per weight", "seconds")
        rows: list[tuple[str, Callable[[], tuple[float, float, float]]]] = []
        if args.ablation:
            for bits in (2, 3):
                for label, change in ABLATION:
                    options = Options(bits=bits, embed_bits=16)
                    rows.append((f"{bits} bits: {label}", lambda o=options, c=change: bench.case(o, c)))
        else:
            rows = [(label, lambda o=options, r=request: bench.case(o, {}, **r)) for label, options, request in REACH]
        table(head, [(label, measure) for label, measure in rows if args.only in label])


if __name__ == "__main__":
    main()

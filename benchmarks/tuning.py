"""What tuning gains: a quantized file before and after, on texts that it has not seen.

    python benchmarks/tuning.py MODEL.gguf TEACHER TEXT [TEXT ...] --work DIR [--calib FILE] [--case NAME ...] [--seeds 0 1 2]

Every case is tuned once a seed and measured as benchmarks/quality.py measures: the first 16 windows of 512 tokens of each TEXT, the second
half of each scored, against the teacher in float32. DIR keeps the text that the teacher wrote, the files, and each figure as soon as it is
measured (tuning.jsonl); what is there is not made again. The table is Markdown.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turboquant_native import _core
from turboquant_native.convert.conversion import Options, fingerprint, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate.evaluation import CachedReference, LiveReference, Scorer, evaluate, text_windows
from turboquant_native.train.settings import Settings
from turboquant_native.train.tuner import Tuner, devices

WINDOWS, CTX = 16, 512
TEXT_TOKENS = 3_000_000
CASES: dict[str, dict[str, Any]] = {
    "before": {},
    "scales, norms; 4M tokens": {"tokens": 4_000_000},
    "the same, rate .005": {"tokens": 4_000_000, "rate": 5e-3},
    "the same, half real text": {"tokens": 4_000_000, "real_share": 0.5},
    "codes too; 4M tokens": {"tokens": 4_000_000, "codes": True},
    "codes too; 12M tokens": {"tokens": 12_000_000, "codes": True},
    "codes too, half real text; 12M tokens": {"tokens": 12_000_000, "codes": True, "real_share": 0.5},
}


class _Tuner(Tuner):
    """Keeps the text that the teacher wrote."""

    cache: Path

    def _sampled(self, windows: int) -> NDArray[np.int32]:
        path = self.cache / f"text-{fingerprint(self._source, windows, self._seq_len, self._settings.seed)[:16]}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, super()._sampled(windows))
            partial.replace(path)
        found: NDArray[np.int32] = np.load(path)
        return found


class Bench:
    """One file, its teacher, and the folder where everything is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = open_source(args.teacher)
        self.log = self.work / "tuning.jsonl"
        self.results = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.references: dict[str, CachedReference] = {}

    def reference(self, text: Path) -> CachedReference:
        if text.name not in self.references:
            path, made = self.work / "reference.gguf", self.work / f"reference-{text.name}.npy"
            if not path.exists():
                write_model(self.source, make_plan(self.source, Options(outtype="f32")), path)
            scorer = Scorer(_core.Model(str(path), precision="f32"), CTX)
            windows = text_windows(scorer.vocabulary, text.read_text(encoding="utf-8"), CTX, WINDOWS)
            live = LiveReference(scorer, windows)
            self.references[text.name] = CachedReference(made, windows) if made.exists() else CachedReference.store(made, live)
            scorer.close()
        return self.references[text.name]

    def run(self, case: str, seed: int) -> None:
        path, tuned = (self.args.model, None) if case == "before" else self._tuned(case, seed)
        for text in self.args.texts:
            reference = self.reference(text)
            model = _core.Model(str(path), precision="f32")
            figures = evaluate(model, reference.windows, reference).as_dict()
            model.close()
            self._note({"case": case, "seed": seed, "text": text.name, "model": self.args.model.name, "tuned": tuned, **figures})

    def _tuned(self, case: str, seed: int) -> tuple[Path, Any]:
        slug = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in f"{case} {seed}")
        target = self.work / f"{self.args.model.stem}-{slug}.gguf"
        if not target.exists():
            device, sampler = devices("auto")
            settings = Settings(**CASES[case], text_tokens=TEXT_TOKENS, calib=self.args.calib, seed=seed)
            tuner = _Tuner(self.args.model, self.source, target, settings, device=device, sampler=sampler, quiet=False)
            tuner.cache = self.work
            print(tuner.run().text(), flush=True)
        return target, json.loads(target.with_name(f"{target.name}.quant.json").read_text())["tuning"]

    def _note(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        with open(self.log, "a") as log:
            log.write(json.dumps(result) + "\n")

    def done(self, case: str, seed: int) -> bool:
        mine = [r for r in self.results if (r["case"], r["seed"], r["model"]) == (case, seed, self.args.model.name)]
        return {r["text"] for r in mine} >= {text.name for text in self.args.texts}

    def table(self) -> None:
        print("| file | case | seed | text | KLD | KLD 99.9 % | same top-1 | perplexity | seconds |\n|" + "---|" * 9)
        for r in self.results:
            seconds = f"{sum(r['tuned']['seconds'].values()):.0f}" if r["tuned"] else ""
            cells = [
                r["model"],
                r["case"],
                str(r["seed"]),
                r["text"],
                f"{r['kld_mean']:.4f}",
                f"{r['kld_p999']:.2f}",
                f"{r['same_top']:.3f}",
            ]
            print("| " + " | ".join([*cells, f"{r['ppl']:.2f}", seconds]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="quantized file")
    parser.add_argument("teacher", help="folder, hub id or GGUF file")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="texts to measure on")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps everything")
    parser.add_argument("--calib", type=Path, help="real text to learn from (default: the standard library's)")
    parser.add_argument("--case", nargs="*", choices=tuple(CASES), default=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    args = parser.parse_args()
    bench = Bench(args)
    for seed in args.seeds:
        for case in args.case:
            if not bench.done(case, seed):
                bench.run(case, seed)
    bench.table()


if __name__ == "__main__":
    main()

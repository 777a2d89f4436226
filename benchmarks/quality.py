"""Loss against size of calibrated files, and what each stage of the calibration gains.

    python benchmarks/quality.py MODEL TEXT [TEXT ...] --work DIR [--calib FILE] [--seeds 0 1 2] [--ablation] [--only PART | --case NAME]

Every case is converted once a seed and measured on the first 16 windows of 512 tokens of each TEXT, the second half of each window
scored, against the model as it stands in its source, in float32. DIR keeps the files, what their conversions share, and each figure as
soon as it is measured (results.jsonl): a run that is repeated goes on where the last one stopped, and further texts cost no conversion.
The tables, in Markdown, show means and standard deviations over the seeds in DIR. Several processes may share DIR, each with cases or
seeds of its own.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import _core
from turboquant_native.calibrate.quantizer import Quantizer
from turboquant_native.calibrate.request import EFFORTS, Request
from turboquant_native.calibrate.sensitivity import Sensitivity
from turboquant_native.common.journal import only_one_process
from turboquant_native.convert.conversion import Options, TensorPlan, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate.evaluation import CachedReference, LiveReference, Scorer, evaluate, text_windows

WINDOWS, CTX = 16, 512
PRECISIONS = ("f32", "int8")  # of the activations


class EndsHigher(Quantizer):
    """Widths by the simple rule in place of the allocation."""

    def _plans(self, sensitivity: Sensitivity) -> dict[str, list[TensorPlan]]:
        return {"simple rule": self._widths.simple_rule(self._header_bytes())}


class Allocated(Quantizer):
    """Widths by the allocation, whatever the simple rule's file measures."""

    def _plans(self, sensitivity: Sensitivity) -> dict[str, list[TensorPlan]]:
        label, plan = next(iter(super()._plans(sensitivity).items()))
        return {label: plan}


@dataclass(frozen=True)
class Case:
    """One kind of file; `maker` None: plain rounding, without calibration."""

    label: str
    options: Options
    request: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, float] = field(default_factory=dict)
    maker: type[Quantizer] | None = Quantizer


def linear(bits: int) -> Options:
    return Options(bits=bits, embed_bits=16)


BUDGETS = {bpw: Case(f"whole file {bpw} bpw", Options(), {"bpw": bpw}) for bpw in (2.0, 2.5, 2.67, 3.0, 3.5, 4.25)}
LINEAR = {bits: Case(f"linear layers {bits} bits, embeddings F16", linear(bits)) for bits in (2, 3, 4)}
REACH = (*BUDGETS.values(), *LINEAR.values())


def ablation() -> Iterator[Case]:
    """The stages one by one off, or otherwise than by default."""
    for bits in (2, 3):
        yield LINEAR[bits]  # all stages
        yield Case(f"{bits} bits: no correction for changed inputs", linear(bits), tuning={"cross": 0.0})
        yield Case(f"{bits} bits: no repair of the residual stream", linear(bits), tuning={"residual": 0.0})
        yield Case(f"{bits} bits: neither correction", linear(bits), tuning={"cross": 0.0, "residual": 0.0})
        yield Case(f"{bits} bits: no error feedback either (plain rounding)", linear(bits), maker=None)
        yield Case(f"{bits} bits: the whole of both corrections", linear(bits), tuning={"cross": 1.0, "residual": 1.0})
        yield Case(f"{bits} bits: damping 0.003", linear(bits), tuning={"damping": 0.003})
        yield Case(f"{bits} bits: tokens weighted by gradients (end-loss)", linear(bits), {"hessian": "end-loss"})
        yield Case(f"{bits} bits: outliers 0.005 of the weights", replace(linear(bits), outliers=0.005))
    for bpw in (2.67, 3.5):
        yield BUDGETS[bpw]  # all stages
        yield Case(f"{bpw} bpw: no outliers", Options(), {"bpw": bpw, "auto_outliers": False}, maker=Allocated)
        if bpw < 3:
            yield Case(
                f"{bpw} bpw: tokens weighted by gradients (end-loss)", Options(), {"bpw": bpw, "hessian": "end-loss"}, maker=Allocated
            )
        yield Case(f"{bpw} bpw: ends higher, no allocation", Options(), {"bpw": bpw}, maker=EndsHigher)


class Bench:
    """One model, its texts, and the folder where everything is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = open_source(args.model, None, None)
        self.log = self.work / "results.jsonl"
        self.results = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        path = self.work / "reference.gguf"
        with only_one_process(path):
            if not path.exists():
                write_model(self.source, make_plan(self.source, Options(outtype="f32")), path)
        self.model = _core.Model(str(path), precision="f32", threads=args.threads)

    def reference(self, text: Path) -> CachedReference:
        scorer = Scorer(self.model, CTX)
        try:
            windows = text_windows(scorer.vocabulary, text.read_text(encoding="utf-8"), CTX, self.args.windows)
            path = self.work / f"reference-{text.name}-{len(windows)}.npy"
            with only_one_process(path):
                return CachedReference(path, windows) if path.exists() else CachedReference.store(path, LiveReference(scorer, windows))
        finally:
            scorer.close()

    def found(self, case: Case, **wanted: Any) -> list[dict[str, Any]]:
        wanted |= {"case": case.label, "effort": self.args.effort, "calib": self._calib(), "windows": self.args.windows}
        return [result for result in self.results if all(result[key] == value for key, value in wanted.items())]

    def run(self, case: Case, seed: int) -> None:
        """Converts and measures what is not known yet."""
        for text in self.args.texts:
            for precision in PRECISIONS:
                if not self.found(case, seed=seed, text=text.name, precision=precision):
                    self._measure(case, seed, text, precision)

    def _calib(self) -> str:
        return "default" if self.args.calib is None else self.args.calib.name

    def _convert(self, case: Case, seed: int) -> tuple[Path, float]:
        """The file and the seconds that its conversion took."""
        slug = re.sub(r"[^\w.]+", "-", f"{case.label} {self.args.effort} {self._calib()} seed {seed}")
        path = self.work / f"{slug}.gguf"
        seconds = path.with_suffix(".seconds")
        if not seconds.exists():
            start = time.monotonic()
            options = replace(case.options, seed=seed)
            if case.maker is None:
                write_model(self.source, make_plan(self.source, options), path, overwrite=True)
            else:
                request = Request(effort=self.args.effort, calib=self.args.calib, cache=self.work, tuning=case.tuning, **case.request)
                maker = case.maker(self.source, path, options, request, threads=self.args.threads)
                maker.run(overwrite=True)
                print(f"{case.label}, seed {seed}: {maker.report.text()}", flush=True)
            seconds.write_text(str(time.monotonic() - start))
        return path, float(seconds.read_text())

    def _measure(self, case: Case, seed: int, text: Path, precision: str) -> None:
        path, seconds = self._convert(case, seed)
        reference = self.reference(text)
        model = _core.Model(str(path), precision=precision, threads=self.args.threads)
        figures = evaluate(model, reference.windows, reference).as_dict()
        model.close()
        result = {"case": case.label, "effort": self.args.effort, "calib": self._calib(), "seed": seed, "text": text.name}
        result |= {"precision": precision, "seconds": seconds, **figures}
        self.results.append(result)
        with open(self.log, "a") as log:
            log.write(json.dumps(result) + "\n")

    def row(self, case: Case, text: str) -> str | None:
        found = {precision: self.found(case, text=text, precision=precision) for precision in PRECISIONS}
        if not found["f32"]:
            return None

        def mean(name: str, digits: int, precision: str = "f32") -> str:
            values = [result[name] for result in found[precision]]
            spread = f" +- {np.std(values, ddof=1):.{digits}f}" if name == "kld_mean" and len(values) > 1 else ""
            return f"{np.mean(values):.{digits}f}{spread}"

        kld = [mean("kld_mean", 4, precision) if found[precision] else "" for precision in PRECISIONS]
        seeds = ", ".join(str(result["seed"]) for result in found["f32"])
        cells = [case.label, *kld, mean("kld_p999", 2), mean("same_top", 3), mean("ppl", 2), mean("bpw", 3), seeds, mean("seconds", 0)]
        return "| " + " | ".join(cells) + " |"

    def table(self, cases: list[Case], text: str) -> None:
        head = ("case", "KLD (float)", "KLD (int8)", "KLD 99.9 %", "same top-1", "perplexity", "bpw", "seeds", "seconds")
        rows = [row for case in cases if (row := self.row(case, text))]
        print("\n".join([f"\n{text}:\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, hub id or GGUF file")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="texts to measure on")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps everything")
    parser.add_argument("--calib", type=Path, help="calibration text (default: the offline mix)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="none: print what is known")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--effort", choices=tuple(EFFORTS), default="normal")
    parser.add_argument("--ablation", action="store_true", help="the stages on and off, instead of the sizes")
    parser.add_argument("--only", default="", metavar="PART", help="cases whose name contains this")
    parser.add_argument("--case", metavar="NAME", help="the case of exactly this name")
    parser.add_argument("--list", action="store_true", help="print the cases' names")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    cases = [case for case in (ablation() if args.ablation else REACH) if args.only in case.label and args.case in (None, case.label)]
    if args.list:
        print("\n".join(case.label for case in cases))
        return
    if not cases:
        parser.error(f"no case is called {args.case or args.only} (--list names them)")
    bench = Bench(args)
    for seed in args.seeds:
        for case in cases:
            bench.run(case, seed)
    for text in args.texts:
        bench.table(cases, text.name)


if __name__ == "__main__":
    main()

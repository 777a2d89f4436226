"""What tuning gains: quantized files before and after, on texts that they have not seen.

    python benchmarks/tuning.py TEACHER TEXT [TEXT ...] --work DIR --runs FILE.gguf:SEED ... [--calib FILE|DIR] [--case NAME ...]
    python benchmarks/tuning.py --table DIR [--plot curves.svg]

Every run is measured as benchmarks/quality.py measures, against the teacher in float32: the first 16 windows of 512 tokens of each TEXT
and the held-out windows of what was learned from, the second half of each scored. DIR keeps the text that the teacher wrote, the files,
and each figure as soon as it is measured (tuning.jsonl); what is there is not made again, and several processes may share DIR. All seeds
learn from the same text, in orders of their own. The table, in Markdown, has means over seeds and standard deviations. `--plot` needs
matplotlib.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from turboquant_native import _core
from turboquant_native.calibrate.text import vocabulary_of
from turboquant_native.common.journal import only_one_process
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate.evaluation import CachedReference, LiveReference, Scorer, evaluate, text_windows
from turboquant_native.train.settings import Settings
from turboquant_native.train.text import Corpus

WINDOWS, CTX = 16, 512
HELD_OUT = "held out"
CASES: dict[str, dict[str, Any]] = {
    "before": {},
    "tuned": {"codes": True},
    "scales and norms alone": {"codes": False},
    "an eighth of real text": {"real_share": 0.125},
    "free rate .001": {"free_rate": 1e-3},
    "free rate .004": {"free_rate": 4e-3},
}
FIGURES = ("kld_mean", "kld_p999", "same_top", "ppl")


class Bench:
    """A teacher, texts, and the folder where everything is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = open_source(args.teacher)
        self.results = read(self.work)

    def corpus(self, tuner: Any) -> Corpus:
        """Of the first run in DIR; for further ones in another order."""
        path = self.work / "corpus.npz"
        with only_one_process(path):
            if not path.exists():
                made = tuner.make_corpus()
                partial = self.work / "partial.npz"
                np.savez_compressed(partial, sampled=made.sampled, real=made.real, held_out=made.held_out)
                partial.replace(path)
        with np.load(path) as kept:
            sampled, real, held_out = (kept[name].astype(np.int32) for name in ("sampled", "real", "held_out"))
        settings = tuner.settings
        return Corpus(sampled, real, held_out, settings.share_of_real_text, settings.seed)

    def references(self) -> dict[str, CachedReference]:
        """Every text's windows with the teacher's distributions."""
        found = {}
        path = self.work / "reference.gguf"
        with only_one_process(path):
            if not path.exists():
                write_model(self.source, make_plan(self.source, Options(outtype="f32")), path)
            model = _core.Model(str(path), precision="f32", device=self.args.engine)
            vocabulary = vocabulary_of(model)
            assert vocabulary is not None
            texts = {text.name: text_windows(vocabulary, text.read_text(encoding="utf-8"), CTX, WINDOWS) for text in self.args.texts}
            if (self.work / "corpus.npz").exists():
                with np.load(self.work / "corpus.npz") as kept:
                    texts[HELD_OUT] = kept["held_out"].astype(np.int32)
            scorer = Scorer(model, CTX)
            for name, windows in texts.items():
                made = self.work / f"reference-{name}.npy"
                live = LiveReference(scorer, windows)
                found[name] = CachedReference(made, windows) if made.exists() else CachedReference.store(made, live)
            scorer.close()
        return found

    def run(self, case: str, model: Path, seed: int) -> None:
        path, tuned = (model, None) if case == "before" else self._tuned(case, model, seed)
        quantized = _core.Model(str(path), precision="f32", device=self.args.engine)
        for text, reference in self.references().items():
            figures = evaluate(quantized, reference.windows, reference).as_dict()
            self._note({"case": case, "seed": seed, "text": text, "model": model.name, "tuned": tuned, **figures})
        quantized.close()

    def _tuned(self, case: str, model: Path, seed: int) -> tuple[Path, Any]:
        from turboquant_native.train.tuner import Tuner, devices

        bench = self

        class Learner(Tuner):
            """Learns from what DIR keeps."""

            make_corpus = Tuner._corpus

            @property
            def settings(self) -> Settings:
                return self._settings

            def _corpus(self) -> Corpus:
                return bench.corpus(self)

        slug = "".join(letter if letter.isalnum() else "-" for letter in f"{case} {seed}")
        target = self.work / f"{model.stem}-{slug}.gguf"
        if not target.exists():
            device, sampler = devices("auto")
            settings = Settings(calib=self.args.calib, seed=seed, tokens=self.args.tokens, text_tokens=self.args.text_tokens)
            settings = replace(settings, **CASES[case])
            tuner = Learner(model, self.source, target, settings, device=device, sampler=sampler, threads=self.args.threads, quiet=False)
            print(tuner.run().text(), flush=True)
        return target, json.loads(target.with_name(f"{target.name}.quant.json").read_text())["tuning"]

    def _note(self, result: dict[str, Any]) -> None:
        print(" ".join(f"{result[name]}" for name in ("model", "case", "seed", "text", *FIGURES)), flush=True)
        self.results.append(result)
        with open(self.work / "tuning.jsonl", "a") as log:
            log.write(json.dumps(result) + "\n")

    def done(self, case: str, model: Path, seed: int) -> bool:
        mine = [r for r in self.results if (r["case"], r["seed"], r["model"]) == (case, seed, model.name)]
        held_out = {HELD_OUT} if (self.work / "corpus.npz").exists() else set()
        return {r["text"] for r in mine} >= {text.name for text in self.args.texts} | held_out


def read(work: Path) -> list[dict[str, Any]]:
    log = work / "tuning.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(results: list[dict[str, Any]]) -> None:
    print("| file | bits | case | seeds | text | KLD | KLD 99.9 % | same top-1 | perplexity | minutes |\n|" + "---|" * 10)
    for key in sorted({(r["bpw"], r["model"], r["text"], r["case"]) for r in results}):
        bpw, model, text, case = key
        same = [r for r in results if (r["bpw"], r["model"], r["text"], r["case"]) == key]
        mean = {name: float(np.mean([r[name] for r in same])) for name in FIGURES}
        spread = f" +- {np.std([r['kld_mean'] for r in same], ddof=1):.4f}" if len(same) > 1 else ""
        seconds = [sum(r["tuned"]["seconds"].values()) for r in same if r["tuned"]]
        figures = f"{mean['kld_mean']:.4f}{spread} | {mean['kld_p999']:.2f} | {mean['same_top']:.3f} | {mean['ppl']:.2f}"
        took = f"{np.mean(seconds) / 60:.1f}" if seconds else ""
        print(f"| {model} | {bpw:.2f} | {case} | {len(same)} | {text} | {figures} | {took} |")


def plot(results: list[dict[str, Any]], target: Path) -> None:
    """The held-out divergence while a file is tuned, one line a file and case (its first seed)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    runs = {(r["model"], r["case"], r["seed"]): r["tuned"] for r in results if r["tuned"]}
    for model, case in sorted({(model, case) for model, case, _ in runs}):
        first = min(seed for m, c, seed in runs if (m, c) == (model, case))
        tokens, divergence = zip(*runs[model, case, first]["curve"][1:], strict=True)
        axes.plot(np.array(tokens) / 1e6, divergence, marker=".", label=f"{model.removesuffix('.gguf')}, {case}")
    axes.set(xlabel="million tokens", ylabel="held-out KL divergence, nats a token", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", nargs="?", help="folder, hub id or GGUF file")
    parser.add_argument("texts", type=Path, nargs="*", metavar="TEXT", help="texts to measure on")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps everything")
    parser.add_argument("--runs", nargs="+", default=[], metavar="FILE:SEED", help="quantized files and seeds")
    parser.add_argument("--calib", type=Path, help="real text to learn from (default: the standard library's)")
    parser.add_argument(
        "--case", nargs="*", choices=tuple(CASES), default=["before", "tuned"], metavar="NAME", help=f"of {', '.join(CASES)}"
    )
    parser.add_argument("--tokens", type=int, default=Settings.tokens, help="that pass in all")
    parser.add_argument("--text-tokens", type=int, help="that the teacher writes")
    parser.add_argument("--engine", default="cpu", help="where the engine measures")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", type=Path, metavar="DIR", help="only print what DIR has")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of --table")
    args = parser.parse_args()
    if args.table is None:
        if args.teacher is None or args.work is None or not args.texts:
            parser.error("give TEACHER, TEXT and --work, or --table")
        bench = Bench(args)
        for run in args.runs:
            name, _, seed = run.rpartition(":")
            for case in args.case:
                if not bench.done(case, Path(name), int(seed)):
                    bench.run(case, Path(name), int(seed))
    results = read(args.table or args.work)
    table(results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()

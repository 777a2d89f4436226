"""`tqn eval`: the measurements of `evaluate` and `multiple_choice` on the command line."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.progress import Progress
from ..engine.cache_types import CHOICES, cache_type, types_of
from ..engine.devices import device
from ..evaluate import evaluation as evaluate
from ..evaluate import kld_base, multiple_choice, step_errors

EXAMPLES = """
  tqn eval model.tqn.gguf --text wiki.test.raw --windows 16
  tqn eval model.tqn.gguf --text wiki.test.raw --reference f16.gguf
  tqn eval model.tqn.gguf --multiple-choice questions.jsonl
  tqn eval prm.tqn.gguf --steps processbench.jsonl --ctx 4096
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("file", help="model to measure")
    task = parser.add_argument_group("what to measure (one of)")
    task.add_argument("--text", metavar="TEXT", help="text file: perplexity, and the KL divergence when there is a reference")
    task.add_argument("--multiple-choice", metavar="JSONL", help="HellaSwag or ARC style questions: accuracy and normalized accuracy")
    task.add_argument("--steps", metavar="JSONL", help="of a process reward model: ProcessBench's F1 on problem, steps and label")
    task.add_argument("--kl-divergence-base", metavar="BASE", help="file written by llama-perplexity: its text and its reference")
    parser.add_argument("--reference", metavar="REF", help="model that the KL divergence is measured from")
    parser.add_argument(
        "--write-kl-divergence-base", metavar="OUT", help="write FILE's own log-probabilities on --text in llama-perplexity's form"
    )
    parser.add_argument("--windows", type=int, metavar="N", help="windows of the text, from its beginning (default: all)")
    parser.add_argument(
        "--ctx",
        type=int,
        default=512,
        help="tokens of a window, of which the second half is scored; with --steps: of a solution (default: %(default)s)",
    )
    parser.add_argument("--convention", metavar="JSON", help="with --steps: how the model reads them (default: as its file says)")
    parser.add_argument("--threshold", type=float, metavar="P", help="with --steps: a step below it counts as wrong (default: 0.5)")
    parser.add_argument("--limit", type=int, metavar="N", help="questions or solutions, from the beginning (default: all)")
    parser.add_argument("--threads", type=int, default=0, help="default: this process's cores")
    parser.add_argument(
        "--precision", choices=("int8", "f32"), default="int8", help="activations of packed matrices (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        choices=CHOICES,
        default="f16",
        help="keys and values, as k8v4; without --reference measured from f16 (default: %(default)s)",
    )
    parser.add_argument("--gpu", action="store_true", help="run on a GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    if sum(value is not None for value in (args.text, args.multiple_choice, args.steps, args.kl_divergence_base)) != 1:
        raise ValueError("give one of --text, --multiple-choice, --steps and --kl-divergence-base")
    for option in ("convention", "threshold"):
        if getattr(args, option) is not None and args.steps is None:
            raise ValueError(f"--{option} goes with --steps")
    for option in ("windows", "limit"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise ValueError(f"--{option} {value}: give 1 or more")
    if args.cache != "f16" and (args.multiple_choice or args.steps or args.write_kl_divergence_base):
        raise ValueError(f"--cache {args.cache} goes with --text or --kl-divergence-base")
    if args.steps:
        return _run_steps(args)
    model = _open(args.file, args)
    try:
        if args.multiple_choice:
            return _run_multiple_choice(model, args)
        if args.write_kl_divergence_base:
            return _write_base(model, args)
        result = _run_base(model, args) if args.kl_divergence_base else _run_text(model, args)
    finally:
        model.close()
    print(json.dumps({"file": args.file, **result.as_dict()}) if args.json else _table(result))
    return 0


def _open(path: str, args: argparse.Namespace) -> Any:
    from .. import _core

    return _core.Model(os.fsencode(path), device=device(-1 if args.gpu else 0, path), threads=args.threads, precision=args.precision)


def _windows(model: Any, args: argparse.Namespace) -> Any:
    scorer = evaluate.Scorer(model, args.ctx)
    try:
        return evaluate.text_windows(scorer.vocabulary, Path(args.text).read_bytes().decode("utf-8"), args.ctx, args.windows)
    except ValueError as error:
        raise ValueError(f"{args.text}: {error}") from None
    finally:
        scorer.close()


def _run_text(model: Any, args: argparse.Namespace) -> evaluate.Evaluation:
    windows = _windows(model, args)
    cache = cache_type(*types_of(args.cache))
    if not args.reference and cache == "auto":
        with _progress(len(windows), args) as progress:
            return evaluate.evaluate(model, windows, progress=_show(progress))
    reference_model = _open(args.reference or args.file, args)
    scorer = evaluate.Scorer(reference_model, args.ctx)
    try:
        if (_windows(reference_model, args) != windows).any():
            raise ValueError(f"{args.file} and {args.reference} have different tokenizers")
        with _progress(len(windows), args) as progress:
            return evaluate.evaluate(model, windows, evaluate.LiveReference(scorer, windows), _show(progress), cache)
    finally:
        scorer.close()
        reference_model.close()


def _run_base(model: Any, args: argparse.Namespace) -> evaluate.Evaluation:
    base = kld_base.KldBaseFile(args.kl_divergence_base)
    base.limit(args.windows)
    with _progress(len(base.windows), args) as progress:
        return evaluate.evaluate(model, base.windows, base, _show(progress), cache_type(*types_of(args.cache)))


def _write_base(model: Any, args: argparse.Namespace) -> int:
    if not args.text:
        raise ValueError("--write-kl-divergence-base needs --text")
    scorer = evaluate.Scorer(model, args.ctx)
    try:
        windows = _windows(model, args)
        with _progress(len(windows), args) as progress:
            kld_base.write(args.write_kl_divergence_base, evaluate.LiveReference(scorer, windows), progress.advance_to)
    finally:
        scorer.close()
    print(json.dumps({"file": args.write_kl_divergence_base}) if args.json else f"{args.write_kl_divergence_base}: {len(windows)} windows")
    return 0


def _run_steps(args: argparse.Namespace) -> int:
    from ..api.llama import Llama

    records = step_errors.read(args.steps, args.limit)
    threshold = 0.5 if args.threshold is None else args.threshold
    layers = -1 if args.gpu else 0
    with Llama(
        args.file, n_ctx=args.ctx, n_threads=args.threads or None, n_gpu_layers=layers, precision=args.precision, verbose=False
    ) as llm:

        def score(solutions: list[tuple[str, tuple[str, ...]]]) -> list[list[float]]:
            return llm.score_solutions(solutions, convention=args.convention)

        with _progress(len(records), args, "solutions") as progress:
            result = step_errors.evaluate(records, score, threshold, progress.advance_to)
    if args.json:
        print(json.dumps({"file": args.file, **result.as_dict()}))
        return 0
    print(f"solutions            {result.solutions}, {result.with_errors} with a wrong step")
    print(f"first wrong found    {100 * result.accuracy_errors:.2f} %")
    print(f"right ones passed    {100 * result.accuracy_correct:.2f} %")
    print(f"F1                   {100 * result.f1:.2f} (threshold {result.threshold:g})")
    return 0


def _run_multiple_choice(model: Any, args: argparse.Namespace) -> int:
    questions = multiple_choice.read(args.multiple_choice, args.limit)
    with _progress(len(questions), args, "questions") as progress:
        result = multiple_choice.evaluate(model, questions, progress=progress.advance_to)
    if args.json:
        print(json.dumps({"file": args.file, **result.as_dict()}))
    else:
        print(f"questions            {result.questions}")
        print(f"accuracy             {100 * result.accuracy:.2f} % ± {100 * result.accuracy_se:.2f}")
        print(f"normalized accuracy  {100 * result.accuracy_norm:.2f} % ± {100 * result.accuracy_norm_se:.2f}")
    return 0


def _progress(count: int, args: argparse.Namespace, unit: str = "windows") -> Progress:
    """For people, on standard error."""
    return Progress(count, "evaluating", quiet=args.json, unit=unit)


def _show(progress: Progress) -> Callable[[int, evaluate.TokenScores], None]:
    """What `evaluate` calls after each window."""

    def show(index: int, scores: evaluate.TokenScores) -> None:
        kld = "" if scores.kld is None else f", KLD {scores.kld.mean():.5f}"
        progress.at(f"nll {scores.nll.mean():.4f}{kld}")
        progress.advance_to(index + 1)

    return show


def _table(result: evaluate.Evaluation) -> str:
    lines = [
        f"windows              {result.windows} of {result.ctx} tokens, {result.scored} scored",
        f"size                 {(result.file_bytes or 0) / 1e6:.1f} MB, {result.bpw:.3f} bits per weight (all tensors)",
        f"perplexity           {result.ppl:.4f} ± {result.ppl_se:.4f}",
    ]
    if result.kld_mean is not None:
        lines += [
            f"reference perplexity {result.ppl_reference:.4f} ± {result.ppl_reference_se:.4f}",
            f"KLD mean             {result.kld_mean:.6f} ± {result.kld_mean_se:.6f}",
            f"KLD median           {result.kld_median:.6f}",
            f"KLD 99 %             {result.kld_p99:.6f}",
            f"KLD 99.9 %           {result.kld_p999:.6f}",
            f"KLD max              {result.kld_max:.6f}",
            f"same top token       {100 * (result.same_top or 0):.2f} % ± {100 * (result.same_top_se or 0):.2f}",
        ]
    return "\n".join(lines)

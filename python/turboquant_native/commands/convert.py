"""`convert_hf_to_tq.py MODEL OUT`: a Hugging Face model, hub id or GGUF file becomes a TQN file."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from ..calibrate.request import CACHE_STATISTICS, EFFORTS, HESSIANS
from ..common.errors import ConvertError
from ..common.sizes import size_argument
from .tune import TUNING, add_tuning, settings_of, tuner_of

if TYPE_CHECKING:
    from ..convert.conversion import Options
    from ..convert.sources import Source

_DEFAULT_BPW = 4.25
_EPILOG = """examples:
  tqn convert ./SmolLM2-135M-Instruct smollm2.gguf                     4.25 bits a weight, calibrated
  tqn convert HuggingFaceTB/SmolLM2-135M-Instruct smollm2.gguf --bpw 3 --effort normal
  tqn convert model-f16.gguf model-48mb.gguf --size 48MB
  tqn convert model-f16.gguf model-tq3.gguf --bits 3 --tensor-bits 'ffn_down=4' --embed-bits 6
  tqn convert ./model small.gguf --bpw 2.67 --tune                       quantized, then tuned by gradients (a GPU, minutes)
  tqn convert ./model quick.gguf --bits 6 --effort none                plain rounding: fast, and at 4 bits and below much worse
  tqn convert ./model reference.gguf --outtype f32
"""


def _tensor_bits(text: str) -> tuple[str, int]:
    pattern, separator, bits = text.rpartition("=")
    if not separator or not bits.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: write REGEX=BITS, for example 'ffn_down=4'")
    return pattern, int(bits)


def _outliers(text: str) -> float | str:
    if text in ("auto", "none"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction, auto or none") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, for this script and for `tqn convert`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", help="folder with config.json, hub id (org/name), or .gguf file")
    parser.add_argument("out", nargs="?", type=Path, help="the file to write")
    _add_sizes(parser.add_argument_group("size (one of --bpw, --size, --bits; default: --bpw 4.25)"))
    _add_widths(parser.add_argument_group(f"widths of single tensors ({', '.join(map(str, _core.FORMATS))} bits; 16: F16, 32: F32)"))
    _add_calibration(parser.add_argument_group("calibration"))
    tuning = parser.add_argument_group("tuning (needs torch)")
    tuning.add_argument("--tune", action="store_true", help="let the file learn from the model, by gradients, as `tqn tune` does")
    add_tuning(tuning)
    _add_run(parser.add_argument_group("the run"))


def _add_sizes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--bpw", type=float, metavar="BITS", help="bits per weight of the whole model, any number: every matrix gets the width that pays"
    )
    group.add_argument("--size", type=size_argument, metavar="48MB", help="size of the file; give the unit (kB, MB, GB, MiB, GiB, B)")
    group.add_argument(
        "--bits",
        type=int,
        choices=_core.FORMATS,
        help="one width for the layers' matrices; embedding and output get what pays at that width",
    )
    group.add_argument("--outtype", choices=("f32", "f16", "bf16"), help="do not quantize: a reference file of this type")


def _add_widths(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tensor-bits",
        type=_tensor_bits,
        action="append",
        default=[],
        metavar="REGEX=BITS",
        help="width of the tensors whose name contains the expression; repeatable, the last match wins",
    )
    group.add_argument(
        "--embed-bits", type=int, metavar="BITS", help="width of the token embedding (default: measured; 8 with --effort none)"
    )
    group.add_argument("--output-bits", type=int, metavar="BITS", help="width of the output matrix (default: the embedding's)")
    group.add_argument(
        "--outliers",
        type=_outliers,
        metavar="FRACTION|auto|none",
        help="fraction of the weights kept in FP16; auto: where they pay (default: auto with --bpw or --size, else none)",
    )


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--effort",
        choices=("none", *EFFORTS),
        default="fast",
        help="none: plain rounding, which at 4 bits and below loses about four times as much. fast: minutes for a small model. normal, "
        "max: more calibration text; with --bpw or --size also a second file by a simple rule for the widths, and the better of the two is "
        "kept (default: fast)",
    )
    group.add_argument("--plan", type=Path, metavar="FILE", help="widths per matrix (JSON): read where the file exists, else written")
    group.add_argument(
        "--calib", type=Path, metavar="FILE|DIR", help="calibration text (txt, jsonl); default: sampled from the model, and Python's own"
    )
    group.add_argument(
        "--hessian",
        choices=HESSIANS,
        help="how calibration tokens count: all alike, or by the gradient of the model's loss, which needs torch (default: activations)",
    )
    group.add_argument(
        "--cache-statistics",
        choices=("auto", *CACHE_STATISTICS),
        help="what the file says of its layers' keys, for quantized caches: their means, balances between queries and keys (default: auto, "
        "both)",
    )
    group.add_argument(
        "--calib-cache", type=Path, metavar="DIR", help="keep reference, text and sensitivities here for the next file of this model"
    )


def _add_run(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--dry-run", action="store_true", help="print the table of tensors, and the time, memory and disk it will take; write nothing"
    )
    run.add_argument("--resume", action="store_true", help="keep finished tensors when interrupted, and go on (calibrated runs always do)")
    run.add_argument("--overwrite", action="store_true", help="replace an existing file")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: all cores)")
    run.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the unquantized model runs and plain rounding searches its codes (default: a GPU where there is one)",
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the rotations (default: 0)")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    run.add_argument(
        "--steps", metavar="JSON", help='a process reward model: how it reads steps, as {"separator": "\\n\\n"} (docs/models.md)'
    )
    run.add_argument("--rerank", metavar="JSON", help='a reranker: {"template": ..., "tokens": ["yes", "no"]} (docs/models.md)')
    run.add_argument("--list-supported", action="store_true", help="print the supported architectures")
    run.add_argument("--cache-dir", metavar="DIR", help="where downloads from the hub go")
    run.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")


def _check(args: argparse.Namespace) -> None:
    """ConvertError for options that contradict each other: none is dropped silently."""
    if args.model is None or (args.out is None and not args.dry_run):
        raise ConvertError("name the model and the file to write (see --help)")
    if args.threads < 0:
        raise ConvertError(f"--threads {args.threads}: give 0 (all cores) or more")
    if not args.tune:
        _refuse(args, "goes with --tune", TUNING)
    sizes = _given(args, "bpw", "size", "bits", "outtype")
    if len(sizes) > 1:
        raise ConvertError(f"{' and '.join(sizes)}: each decides the size; give one of them")
    measuring = tuple(name for name in _CALIBRATION if name != "cache_statistics" or args.cache_statistics not in ("none", "auto"))
    if args.outtype is not None:
        if args.tune:
            raise ConvertError(f"--tune: --outtype {args.outtype} leaves nothing to tune")
        _refuse(args, f"--outtype {args.outtype} leaves the weights as they are", measuring)
        _refuse(args, f"--outtype {args.outtype} leaves the weights as they are", ("tensor_bits", "embed_bits", "output_bits", "outliers"))
    elif args.effort == "none":
        _refuse(args, "--effort none measures nothing", (*measuring, "bpw", "size"))
        if args.outliers == "auto":
            raise ConvertError("--outliers auto: --effort none measures nothing; give a fraction")


_CALIBRATION = ("plan", "calib", "calib_cache", "hessian", "cache_statistics")


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """The options among these that were given, as they are written."""
    return [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names if getattr(args, name) not in (None, [])]


def _refuse(args: argparse.Namespace, why: str, names: tuple[str, ...]) -> None:
    if given := _given(args, *names):
        raise ConvertError(f"{', '.join(given)}: {why}")


def _convert(args: argparse.Namespace) -> None:
    _check(args)
    if args.tune and not args.dry_run:
        _tuned(args)
    else:
        _quantize(args)


def _tuned(args: argparse.Namespace) -> None:
    """Quantizes into a file beside the target, which is tuned into it. A run that was stopped goes on with what is there."""
    from dataclasses import asdict

    from ..common.json_files import read_object, write_json
    from ..convert.conversion import check_target, fingerprint
    from ..convert.sources import open_source

    settings_of(args)
    source = open_source(args.model, args.cache_dir, args.revision)
    check_target(source, args.out, args.overwrite)
    untuned = args.out.with_name(f".{args.out.name}.untuned.gguf")
    note, report = untuned.with_suffix(".key"), untuned.with_name(f"{untuned.name}.quant.json")
    asked = {
        name: str(value) for name, value in vars(args).items() if name not in (*TUNING, "overwrite", "quiet", "json", "threads", "verb")
    }
    key = {"key": fingerprint(source, asked)}
    if not (untuned.exists() and note.exists() and read_object(note) == key):
        _quantize(argparse.Namespace(**{**vars(args), "out": untuned, "overwrite": True, "json": False}))
        write_json(note, key)
    result = tuner_of(args, untuned, source, args.out).run(args.overwrite)
    for file in (untuned, note, report):
        file.unlink(missing_ok=True)
    _print_summary(args, asdict(result), result.text())


def _quantize(args: argparse.Namespace) -> None:
    from ..convert.conversion import Options
    from ..convert.sources import open_source

    outliers = args.outliers if isinstance(args.outliers, float) else 0.0
    bits = 4 if args.bits is None else args.bits
    options = Options(bits, tuple(args.tensor_bits), args.embed_bits, args.output_bits, outliers, args.outtype, args.seed)
    source = open_source(args.model, args.cache_dir, args.revision)
    source.head |= _head_keys(args)
    if _is_calibrated(args):
        _calibrated(args, source, options)
    else:
        _plain(args, source, options)


def _head_keys(args: argparse.Namespace) -> dict[str, Any]:
    """What --steps and --rerank put into the file."""
    from ..api.scores import rerank_keys
    from ..engine.steps import STEPS_KEY, StepConvention

    keys: dict[str, Any] = {}
    for option, given, read in (
        ("steps", args.steps, lambda text: {STEPS_KEY: StepConvention.of(text).to_json()}),
        ("rerank", args.rerank, rerank_keys),
    ):
        try:
            keys |= read(given) if given is not None else {}
        except ValueError as error:
            raise ConvertError(f"--{option}: {error}") from None
    return keys


def _is_calibrated(args: argparse.Namespace) -> bool:
    return args.outtype is None and args.effort != "none"


def _plain(args: argparse.Namespace, source: "Source", options: "Options") -> None:
    """Every weight rounded for itself, or a file that is not quantized."""
    from ..calibrate.plain_estimate import check_memory, plain_estimate
    from ..convert.conversion import check_target, make_plan, plain_rounding, plan_table, write_model

    plan = make_plan(source, options)
    if args.dry_run:
        print(plan_table(source, plan))
        if options.outtype is None:
            print(plain_estimate(plan, args.threads, _device(args)).text())
        return
    check_target(source, args.out, args.overwrite)
    check_memory(plan)
    if options.outtype is None and not args.quiet:
        print(f"{_PLAIN_COST}\n{plain_estimate(plan, args.threads, _device(args)).text()}", file=sys.stderr)
    summary = write_model(
        source,
        plan,
        args.out,
        rounder=plain_rounding(args.threads, _device(args)),
        overwrite=args.overwrite,
        resume=args.resume,
        quiet=args.quiet,
    )
    _print_summary(args, summary.to_dict(), summary.text())


_PLAIN_COST = (
    "--effort none: every weight is rounded for itself. At 4 bits that loses about four times as much as --effort fast (SmolLM2-135M: KL "
    "divergence 0.24, noticeable, in place of 0.05, close to the original), below it more; from 6 bits on it is good."
)


def _device(args: argparse.Namespace) -> str:
    """ "cpu" or "cuda": a GPU where one works, unless --device says otherwise."""
    from .. import _core

    if args.device != "auto":
        return str(args.device)
    return "cuda" if _core.backends().get("cuda", "").startswith("available") else "cpu"


def _calibrated(args: argparse.Namespace, source: "Source", options: "Options") -> None:
    from dataclasses import asdict

    from ..calibrate.quantizer import Quantizer
    from ..calibrate.request import Request

    decided = args.bits is not None or args.size is not None or (args.plan is not None and args.plan.exists())
    asked = {} if args.cache_statistics in (None, "auto") else {"cache_statistics": args.cache_statistics}
    request = Request(
        _DEFAULT_BPW if args.bpw is None and not decided else args.bpw,
        args.size,
        args.plan,
        args.calib,
        args.effort,
        args.outliers in (None, "auto"),
        hessian=args.hessian or "activations",
        cache=args.calib_cache,
        **asked,
    )
    out = args.out or Path("model.gguf")
    quantizer = Quantizer(source, out, options, request, threads=args.threads, quiet=args.quiet, device=_device(args))
    if args.dry_run:
        print(quantizer.preview())
        return
    summary = quantizer.run(args.overwrite)
    _print_summary(args, {**summary.to_dict(), **asdict(quantizer.report)}, f"{summary.text()}\n{quantizer.report.text()}")


def _print_summary(args: argparse.Namespace, figures: dict[str, Any], text: str) -> None:
    if args.json:
        import json

        print(json.dumps(figures, default=str))
    elif not args.quiet:
        print(text)


def run(args: argparse.Namespace) -> int:
    """Carry out parsed arguments; 0, or 1 after one line on standard error (130 when interrupted)."""
    # Read when NumPy is loaded: its BLAS's threads, waiting for work, would spin on cores that the engine's threads need.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "8")
    if args.list_supported:
        from ..convert.architectures import supported

        print("\n".join(supported()))
        return 0
    try:
        _convert(args)
    except (ConvertError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {_what_is_kept(args)}", file=sys.stderr)
        return 130
    return 0


def _what_is_kept(args: argparse.Namespace) -> str:
    if args.tune:
        return f"the same command goes on from what is kept beside {args.out}"
    if _is_calibrated(args):
        return f"the same command goes on from the last finished stage (kept in {args.out.with_name(f'.{args.out.name}.work')})"
    return "run again with --resume to go on" if args.resume else "nothing is kept (--resume keeps finished tensors)"


def main(argv: list[str] | None = None) -> int:
    """The console script."""
    parser = argparse.ArgumentParser(prog="convert_hf_to_tq.py", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

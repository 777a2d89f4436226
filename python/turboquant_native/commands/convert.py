"""`convert_hf_to_tq.py MODEL OUT`: a Hugging Face model, hub id or GGUF file becomes a TQN file."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from ..common.errors import ConvertError

if TYPE_CHECKING:
    from ..convert.conversion import Options
    from ..convert.sources import Source

_CALIBRATING = "--bpw, --size, --plan, --calib, --calib-cache, --hessian, --effort"
_EPILOG = """examples:
  convert_hf_to_tq.py ./SmolLM2-135M-Instruct smollm2.gguf --bits 4
  convert_hf_to_tq.py HuggingFaceTB/SmolLM2-135M-Instruct smollm2.gguf --bits 3 --outliers 0.002
  convert_hf_to_tq.py model-f16.gguf model-tq3.gguf --bits 3 --tensor-bits 'ffn_down=4' --embed-bits 6
  convert_hf_to_tq.py ./model reference.gguf --outtype f32
  convert_hf_to_tq.py ./model smallest.gguf --bpw 2.5
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


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give bytes, for example 48MB or 1.5GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMG".index(found[2] or " "))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, for this script and for `tqn convert`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", help="folder with config.json, hub id (org/name), or .gguf file")
    parser.add_argument("out", nargs="?", type=Path, help="the file to write")
    widths = parser.add_argument_group(f"widths ({', '.join(map(str, _core.FORMATS))} bits; 16: F16, 32: F32)")
    widths.add_argument("--bits", type=int, default=4, choices=_core.FORMATS, help="bits per weight of the layers' matrices (default: 4)")
    widths.add_argument(
        "--tensor-bits",
        type=_tensor_bits,
        action="append",
        default=[],
        metavar="REGEX=BITS",
        help="width of the tensors whose name contains the expression; repeatable, the last match wins",
    )
    widths.add_argument(
        "--embed-bits", type=int, default=8, metavar="BITS", help="width of the token embedding (default: 8; a budget decides itself)"
    )
    widths.add_argument("--output-bits", type=int, metavar="BITS", help="width of the output matrix (default: the embedding's)")
    widths.add_argument(
        "--outliers",
        type=_outliers,
        metavar="FRACTION|auto|none",
        help="fraction of the weights kept in FP16; auto: where they pay (default: auto with a budget, else none)",
    )
    widths.add_argument("--outtype", choices=("f32", "f16", "bf16"), help="do not quantize: a reference file of this type")
    quality = parser.add_argument_group("calibration (any of these options turns it on): the least loss at a size")
    quality.add_argument(
        "--bpw", type=float, metavar="BITS", help="bits per weight of the whole model, any number: widths are chosen per matrix"
    )
    quality.add_argument("--size", type=_size, metavar="48MB", help="bytes of the file, instead of --bpw")
    quality.add_argument("--plan", type=Path, metavar="FILE", help="widths per matrix (JSON): read where the file exists, else written")
    quality.add_argument(
        "--calib", type=Path, metavar="FILE|DIR", help="calibration text (txt, jsonl); default: sampled from the model, and Python's own"
    )
    quality.add_argument(
        "--hessian",
        choices=("activations", "end-loss"),
        help="how calibration tokens count: all alike, or by the gradient of the model's loss, which needs torch (default: activations)",
    )
    quality.add_argument(
        "--effort",
        choices=("fast", "normal", "max"),
        help="calibration text: 24, 64 or 256 windows of 512 tokens. With --bpw or --size, normal and max also make a second file "
        "by a simple rule for the widths, which takes almost twice as long, and keep that one where it measures clearly better "
        "(default: normal)",
    )
    quality.add_argument(
        "--calib-cache", type=Path, metavar="DIR", help="keep reference, text and sensitivities here for the next file of this model"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--dry-run", action="store_true", help="print the table of tensors and sizes as far as it is known, write nothing")
    run.add_argument("--resume", action="store_true", help="keep finished tensors when interrupted, and go on from them")
    run.add_argument("--overwrite", action="store_true", help="replace an existing file")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: all cores)")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where plain rounding searches its codes (default: cpu)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the rotations (default: 0)")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    run.add_argument("--list-supported", action="store_true", help="print the supported architectures")
    run.add_argument("--cache-dir", metavar="DIR", help="where downloads from the hub go")
    run.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")


def _convert(args: argparse.Namespace) -> None:
    from ..convert.conversion import Options, check_target, make_plan, plain_rounding, plan_table, write_model
    from ..convert.sources import open_source

    if args.model is None or (args.out is None and not args.dry_run):
        raise ConvertError("name the model and the file to write (see --help)")
    if args.threads < 0:
        raise ConvertError(f"--threads {args.threads}: give 0 (all cores) or more")
    outliers = args.outliers if isinstance(args.outliers, float) else 0.0
    options = Options(args.bits, tuple(args.tensor_bits), args.embed_bits, args.output_bits, outliers, args.outtype, args.seed)
    source = open_source(args.model, args.cache_dir, args.revision)
    if _is_calibrated(args):
        _calibrated(args, source, options)
        return
    plan = make_plan(source, options)
    if args.dry_run:
        print(plan_table(source, plan))
        return
    check_target(source, args.out, args.overwrite)
    summary = write_model(
        source,
        plan,
        args.out,
        rounder=plain_rounding(args.threads, args.device),
        overwrite=args.overwrite,
        resume=args.resume,
        quiet=args.quiet,
    )
    _print_summary(args, summary.to_dict(), summary.text())


def _is_calibrated(args: argparse.Namespace) -> bool:
    given = (args.bpw, args.size, args.plan, args.calib, args.calib_cache, args.hessian, args.effort)
    return any(value is not None for value in given)


def _calibrated(args: argparse.Namespace, source: "Source", options: "Options") -> None:
    from dataclasses import asdict

    from ..calibrate.quantizer import Quantizer, Request

    if args.outtype is not None:
        raise ConvertError(f"--outtype does not go with calibration ({_CALIBRATING})")
    if args.device != "cpu":
        raise ConvertError(f"--device {args.device} is for plain rounding, without calibration ({_CALIBRATING})")
    automatic = args.outliers in (None, "auto")
    request = Request(
        args.bpw,
        args.size,
        args.plan,
        args.calib,
        args.effort or "normal",
        automatic,
        hessian=args.hessian or "activations",
        cache=args.calib_cache,
    )
    quantizer = Quantizer(source, args.out or Path("model.gguf"), options, request, threads=args.threads, quiet=args.quiet)
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

"""`tqn tune`: a quantized file learns from the model it was made of."""

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLES = """
  tqn tune smollm2.gguf --teacher ./SmolLM2-135M-Instruct
  tqn tune smollm2.gguf --teacher HuggingFaceTB/SmolLM2-135M-Instruct -o tuned.gguf --calib mytexts/ --tokens 50M
"""


def _number(text: str) -> int:
    factor = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, for example 16M or 500k") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("file", help="quantized model file")
    parser.add_argument("--teacher", required=True, metavar="SOURCE", help="the model it was made of: folder, hub id or GGUF file")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: FILE with .tuned before .gguf")
    add_tuning(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where PyTorch has one")
    parser.add_argument("--calib", type=Path, metavar="FILE|DIR", help="real text to learn from (default: Python's own documentation)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of text and order (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads from the hub go")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")


def add_tuning(group: Any) -> None:
    """The options that `tqn convert --tune` has too."""
    group.add_argument("--tokens", type=_number, metavar="8M", help="that pass in all (default: 8M; a CPU takes hours for that)")
    group.add_argument("--text-tokens", type=_number, metavar="2M", help="sampled from the teacher (default: a quarter, at most 4M)")
    group.add_argument("--real-share", type=float, metavar="FRACTION", help="of real text in a batch (default: 0.75 of --calib, else 0.25)")
    group.add_argument("--seq-len", type=int, metavar="N", help="tokens of a window (default: 512)")
    group.add_argument("--windows", type=int, metavar="N", help="of one step (default: 16)")
    group.add_argument("--rate", type=float, metavar="R", help="learning rate, relative to what learns (default: 0.002)")
    group.add_argument("--free-rate", type=float, metavar="R", help="of weights that are yet to be rounded (default: 0.002)")
    group.add_argument("--code-part", type=float, metavar="FRACTION", help="of the steps, in which codes are chosen (default: 0.85)")
    group.add_argument(
        "--codes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="choose the codes again, group by group: 16 bytes a weight of memory (default: up to a billion weights, 3.2 bits on average)",
    )


TUNING = ("tokens", "text_tokens", "real_share", "seq_len", "windows", "rate", "free_rate", "code_part", "codes")


def settings_of(args: argparse.Namespace) -> Any:
    """The `Settings` that were asked for; ConvertError names an option that cannot be."""
    from ..train.settings import Settings

    given = {name: getattr(args, name) for name in TUNING if getattr(args, name) is not None}
    return Settings(**given, calib=args.calib, seed=args.seed)


def tuner_of(args: argparse.Namespace, file: Path, source: Any, target: Path) -> Any:
    """The `Tuner`; ConvertError where PyTorch is not there."""
    from ..common.errors import ConvertError

    settings = settings_of(args)
    try:
        from ..train.tuner import Tuner, devices
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConvertError("tuning needs torch: pip install 'turboquant-native[train]'") from None
    device, sampler = devices(args.device)
    return Tuner(file, source, target, settings, device=device, sampler=sampler, threads=args.threads, quiet=args.quiet)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from dataclasses import asdict

    from ..convert.sources import open_source

    file = Path(args.file)
    target = args.output or file.with_name(f"{file.name.removesuffix('.gguf')}.tuned.gguf")
    source = open_source(args.teacher, args.cache_dir, args.revision, needs_tokenizer=False)
    result = tuner_of(args, file, source, target).run(args.overwrite)
    if args.json:
        print(json.dumps(asdict(result)))
    elif not args.quiet:
        print(result.text())
    return 0

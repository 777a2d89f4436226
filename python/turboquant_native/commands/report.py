"""`tqn report`: pictures of quantized files in one HTML page that needs nothing else."""

import argparse
from pathlib import Path

EXAMPLES = """
  tqn report model.tqn.gguf
  tqn report small.gguf large.gguf -o compared.html
"""


def _point(text: str) -> tuple[str, float, float]:
    try:
        name, figures = text.rsplit("=", 1)
        bpw, kld = map(float, figures.split(","))
        if not (name and bpw > 0 and kld > 0):
            raise ValueError
        return name, bpw, kld
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=BPW,KLD, for example IQ3_XXS=3.52,0.744") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="TQN files; FILE.quant.json is read where it is there")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="NAME=BPW,KLD",
        help="a measured file of another program; repeatable",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..evaluate.report import Point, Quantized, page

    points = [Point(*point) for point in args.point]
    args.output.write_text(page([Quantized(path) for path in args.files], points), encoding="utf-8")
    print(args.output)
    return 0

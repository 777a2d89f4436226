"""`tqn pull`: a model is fetched by name, or converted once, and kept."""

from __future__ import annotations

import argparse
import json

from . import model_arguments
from .terminal.console import size

EXAMPLES = """
  tqn pull smollm2:4bit              a name of the index
  tqn pull org/name                  its TQN file, else converted here
  tqn pull org/name:3bit             converted to 3 bits a weight
  tqn pull org/name:2.5bpw           to 2.5 bits on average
  tqn pull smollm2 --index models.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", help="a name of the index, or org/name[:TAG] of the Hugging Face hub")
    parser.add_argument("--index", metavar="FILE|URL", help="index of converted models (default: TQN_INDEX, else the package's)")
    parser.add_argument("--effort", metavar="EFFORT", help="of a conversion, as `tqn convert` has it (default: its own)")
    parser.add_argument("--again", action="store_true", help="fetch or convert it also where it is kept already")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    from ..api.models import Models

    models = Models(model_arguments.convert, index=args.index)
    entry = models.pull(args.name, ["--effort", args.effort] if args.effort else [], args.again)
    print(json.dumps(entry.to_dict()) if args.json else f"{entry.name}: {size(entry.size)}, {entry.path}")
    return 0

"""`tqn rm`: models are deleted from those that are kept here."""

from __future__ import annotations

import argparse
import json
import sys

from ..api.store import Store
from .terminal.console import size

EXAMPLES = """
  tqn rm org/name
  tqn rm smollm2:4bit smollm2:3bit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="as `tqn ls` shows it; files elsewhere are never touched")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 1 where a name is not kept; the others are deleted all the same."""
    store, freed, missing = Store(), {}, []
    for name in args.names:
        try:
            freed[name] = store.remove(name)
        except ValueError as error:
            missing.append(name)
            print(f"tqn rm: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps({"removed": freed, "missing": missing}))
    else:
        for name, count in freed.items():
            print(f"{name}: removed, {size(count)} freed")
    return 1 if missing else 0

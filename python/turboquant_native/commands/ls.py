"""`tqn ls`: the models that are kept here, and with `--all` those of the index."""

from __future__ import annotations

import argparse
import json
import time

from ..api import model_index
from ..api.store import Store
from .terminal.console import columns, size, table

EXAMPLES = """
  tqn ls
  tqn ls --all        also those that `tqn pull` knows
  tqn ls --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--all", action="store_true", help="also the models of the index, which can be pulled (default: those kept here)")
    parser.add_argument("--index", metavar="FILE|URL", help="index of converted models (default: TQN_INDEX, else the package's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    store = Store()
    kept = list(store)
    names = {entry.name for entry in kept}
    listed = [model for model in model_index.load(args.index) if model.name not in names] if args.all else []
    if args.json:
        others = [{"name": model.name, "size": model.size, "url": model.url, "description": model.description} for model in listed]
        print(json.dumps({"models": [entry.to_dict() for entry in kept], "index": others}))
        return 0
    rows = [(entry.name, size(entry.size), time.strftime("%Y-%m-%d", time.localtime(entry.created)), entry.source) for entry in kept]
    rows += [(model.name, size(model.size), "to pull", model.description or model.url) for model in listed]
    if rows:
        print(table(("name", "size", "made", "from"), rows, columns()))
    else:
        print(f"no models in {store.root}; `tqn pull org/name` fetches one")
    return 0

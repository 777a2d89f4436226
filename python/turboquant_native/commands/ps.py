"""`tqn ps`: servers (`tqn serve`) that run on this machine."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from ..api import running
from ..common.progress import duration
from .terminal.console import columns, table

EXAMPLES = """
  tqn ps
  tqn ps --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    found = running.servers()
    if args.json:
        print(json.dumps({"servers": [{**asdict(server), "url": server.url} for server in found]}))
    elif found:
        rows = [(str(s.pid), duration(max(0.0, time.time() - s.started)), s.url, s.model) for s in found]
        print(table(("pid", "up", "address", "model"), rows, columns()))
    else:
        print("no server runs; `tqn serve MODEL` starts one")
    return 0

"""`tqn stop`: servers (`tqn serve`) are asked to end."""

from __future__ import annotations

import argparse
import json

from ..api import running

EXAMPLES = """
  tqn stop              the one that runs
  tqn stop 8080         by port (or process number, or model)
  tqn stop --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("which", nargs="?", metavar="PORT|PID|MODEL", help="which server (default: the only one that runs)")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait for its end (%(default)s)")
    parser.add_argument("--force", action="store_true", help="kill it when it has not ended by then")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 1 where a server does not end in time."""
    chosen = _chosen(args)
    ended = {server.pid: running.stop(server, args.timeout, args.force) for server in chosen}
    if args.json:
        print(json.dumps({"stopped": [pid for pid in ended if ended[pid]], "running": [pid for pid in ended if not ended[pid]]}))
    else:
        for server in chosen:
            state = "stopped" if ended[server.pid] else f"still runs after {args.timeout:g} s; --force kills it"
            print(f"{server.pid} ({server.url}): {state}")
    return 0 if all(ended.values()) else 1


def _chosen(args: argparse.Namespace) -> list[running.Server]:
    found = running.servers()
    if args.all and args.which is not None:
        raise ValueError("name one server or give --all")
    if args.which is not None:
        matching = [s for s in found if args.which in (str(s.port), str(s.pid), s.model)]
        if not matching:
            raise ValueError(f"no server {args.which!r} runs here; `tqn ps` lists those that do")
        return matching
    if not args.all and len(found) != 1:
        raise ValueError("no server runs here" if not found else f"{len(found)} servers run here (`tqn ps`): name one, or give --all")
    return found

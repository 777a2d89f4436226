"""`tqn verify`: is a model file whole?"""

import argparse
import json
import sys
from dataclasses import asdict

from ..common.files import printable
from ..convert.inspection import verify

EXAMPLES = """
  tqn verify model.tqn.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("file", help="model file")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 when the file is whole, 1 when it is damaged."""
    result = verify(args.file, args.threads)
    if args.json:
        print(json.dumps({**asdict(result), "ok": result.ok}))
    elif result.ok:
        checked = f"{result.checksummed} checksums right" if result.checksummed else "it has no checksums: only its structure was checked"
        print(f"{printable(args.file)}: whole ({result.tensors} tensors stored as {result.planes} planes, {checked})")
    for problem in () if args.json else result.problems:
        named = problem.startswith(f'"{args.file}"')  # errors of the core begin with the file's name
        print(problem if named else f"{printable(args.file)}: {problem}", file=sys.stderr)
    return 0 if result.ok else 1

"""`tqn chat`: what `tqn run` does at a terminal; from a pipe every line is a message."""

import argparse

from . import model_arguments
from .run import add_chat_arguments, converse
from .terminal.console import Console

EXAMPLES = """
  tqn chat model.tqn.gguf
  tqn chat org/name --system "Answer in one sentence."
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_chat_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command until the user leaves."""
    if args.fit_only:
        return model_arguments.print_fit(args, as_json=False)
    console = Console()
    with model_arguments.open_model(args, console) as opened:
        return converse(opened, console)

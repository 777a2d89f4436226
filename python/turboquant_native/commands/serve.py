"""`tqn serve`: models over HTTP, for programs and for the page at /."""

from __future__ import annotations

import argparse
import os

from ..server import command
from . import model_arguments

EXAMPLES = """
  tqn serve model.tqn.gguf             page at http://127.0.0.1:8080/
  tqn serve org/name --port 9000
  tqn serve folder-of-models --max-loaded 2 --idle 600
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until the process is told to end; names of kept models and of the hub stand for their files."""
    for models in (args.model, args.more_models):
        models[:] = [model if os.path.exists(model) else str(model_arguments.find_model(model)) for model in models]
    return command.run(args)

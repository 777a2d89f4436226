"""`tqn`, the command line: every verb is a module with `add_arguments` and `run`."""

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence

from .. import __version__

# verb: (module, one line of help)
_VERBS = {
    "convert": ("convert", "make a TQN file from a Hugging Face model or a GGUF file"),
    "run": ("run", "continue a prompt, or answer it as a chat turn"),
    "chat": ("chat", "talk to a model"),
    "serve": ("serve", "serve a model: OpenAI's and Anthropic's interfaces, and a page"),
    "info": ("info", "architecture, tensors and sizes of a model file"),
    "verify": ("verify", "check a model file for damage"),
    "eval": ("evaluate", "perplexity, KL divergence, multiple choice"),
    "bench": ("bench", "speed of prompts and generation"),
    "report": ("report", "pictures of one or more quantized files"),
    "doctor": ("doctor", "what this installation can use, and why not the rest"),
}


def _available(module: str) -> bool:
    return importlib.util.find_spec(f".{module}", __package__) is not None


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that is asked for is imported."""
    parser = argparse.ArgumentParser(prog="tqn", description="Language models at 1 to 8 bits a weight.")
    parser.add_argument("--version", action="version", version=f"turboquant-native {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, (module, line) in _VERBS.items():
        if _available(module):
            command = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
            command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
            if name == verb:
                importlib.import_module(f".{module}", __package__).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tqn`; returns the exit code: 0, 1 for an error (one line on stderr), 2 for wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in arguments if argument in _VERBS), None)
    args = _parser(verb).parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return int(importlib.import_module(f".{_VERBS[args.verb][0]}", __package__).run(args) or 0)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: not worth a message
        return 1
    except Exception as error:
        if args.debug:
            raise
        print(f"tqn {args.verb}: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())

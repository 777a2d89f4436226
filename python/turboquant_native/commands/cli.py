"""`tqn`, the command line: every verb is a module with `add_arguments` and `run`."""

import argparse
import importlib
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from .terminal.console import forgiving_streams

# verb: (module, one line of help)
_VERBS = {
    "convert": ("convert", "make a TQN file from a Hugging Face model or a GGUF file"),
    "tune": ("tune", "let a quantized file learn from the model it was made of"),
    "run": ("run", "chat with a model, or have one prompt answered"),
    "chat": ("chat", "chat with a model, also line by line from a pipe"),
    "serve": ("serve", "serve a model: OpenAI's and Anthropic's interfaces, and a page"),
    "ls": ("ls", "list the models that are kept here"),
    "pull": ("pull", "fetch a model by name, or convert it, and keep it"),
    "rm": ("rm", "delete models that are kept here"),
    "ps": ("ps", "list the servers that run"),
    "stop": ("stop", "end a server"),
    "info": ("info", "architecture, tensors and sizes of a model file"),
    "verify": ("verify", "check a model file for damage"),
    "eval": ("evaluate", "perplexity, KL divergence, multiple choice"),
    "bench": ("bench", "speed of prompts and generation"),
    "report": ("report", "pictures of one or more quantized files"),
    "doctor": ("doctor", "what this installation can use, and why not the rest"),
}


def _available(module: str) -> bool:
    return importlib.util.find_spec(f".{module}", __package__) is not None


class _Version(argparse.Action):
    """Loads the extension only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            from .. import _core
        except ImportError as error:
            build = f"extension: cannot be loaded: {error}"
        else:
            build = f"built by {_core.BUILD}\ninstruction sets: {', '.join(_core.available_isas())}; in use: {_core.isa()}"
        print(f"turboquant-native {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})\n{build}")
        parser.exit()


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that is asked for is imported."""
    parser = argparse.ArgumentParser(prog="tqn", description="Language models at 1 to 8 bits a weight.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, the build and the instruction sets, and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, (module, line) in _VERBS.items():
        if _available(module):
            command = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
            command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
            if name == verb:
                _declare(command, importlib.import_module(f".{module}", __package__))
    return parser


def _declare(command: argparse.ArgumentParser, module: ModuleType) -> None:
    """The verb's arguments, and its examples below them."""
    if examples := getattr(module, "EXAMPLES", None):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = f"examples:{examples.rstrip()}"
    module.add_arguments(command)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; a verb with `take_words` also has the words that stand behind options, which argparse leaves over."""
    verb = next((argument for argument in arguments if argument in _VERBS), None)
    parser = _parser(verb)
    args, rest = parser.parse_known_args(arguments)
    take = getattr(importlib.import_module(f".{_VERBS[args.verb][0]}", __package__), "take_words", None)
    if rest and take is not None and not any(word.startswith("-") for word in rest):
        take(args, rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _find_kept(args)
    return args


def _find_kept(args: argparse.Namespace) -> None:
    """The verbs that look at a FILE also take the name of a kept model."""
    file = getattr(args, "file", None)
    if isinstance(file, str) and not os.path.exists(file):
        from ..api.store import Store

        kept = Store().find(file)
        args.file = str(kept.path) if kept else file


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tqn`; returns the exit code: 0, 1 for an error (one line on stderr), 2 for wrong usage, 130 after Ctrl-C."""
    forgiving_streams()
    args = _parsed(list(sys.argv[1:] if argv is None else argv))
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

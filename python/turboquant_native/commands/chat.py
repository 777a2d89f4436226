"""`tqn chat`: a conversation in the terminal."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from . import sampling_arguments
from .run import speed_line

_HELP = "/clear begins anew, /system TEXT sets the system message, /speed shows tokens/s, /quit or Ctrl-D ends; Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    sampling_arguments.add_arguments(parser, temperature=0.7, max_tokens=-1)
    parser.add_argument("--system", help="system message")


class Conversation:
    """Messages so far, and the model that answers. What was said before stays in the engine's cache."""

    def __init__(self, llm: Any, system: str | None, options: dict[str, Any]) -> None:
        self._llm, self._system, self._options = llm, system, options
        self.messages: list[dict[str, str]] = []

    def clear(self, system: str | None = None) -> None:
        """Forgets what was said."""
        self._system = system if system is not None else self._system
        self.messages = []

    def ask(self, text: str, show: Callable[[str], None]) -> None:
        """Adds the user's message and the answer, whose pieces are shown as they come; KeyboardInterrupt keeps what was said."""
        self.messages.append({"role": "user", "content": text})
        opening = [{"role": "system", "content": self._system}] if self._system else []
        answer: list[str] = []
        try:
            for part in self._llm.create_chat_completion([*opening, *self.messages], stream=True, **self._options):
                piece = part["choices"][0]["delta"].get("content") or ""
                answer.append(piece)
                show(piece)
        except ValueError:
            self.messages.pop()
            raise
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})


def run(args: argparse.Namespace) -> int:
    """Runs the command until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing in input())
    with sampling_arguments.open_model(args) as llm:
        conversation = Conversation(llm, args.system, sampling_arguments.options(args))
        print(_HELP)
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return 0
            if line in ("/quit", "/exit"):
                return 0
            _handle(conversation, llm, line)


def _handle(conversation: Conversation, llm: Any, line: str) -> None:
    if line == "/clear":
        conversation.clear()
    elif line.startswith("/system "):
        conversation.clear(line.removeprefix("/system ").strip())
    elif line == "/speed":
        print(speed_line(llm.timings))
    elif line.startswith("/"):
        print(_HELP)
    elif line:
        try:
            conversation.ask(line, lambda piece: print(piece, end="", flush=True))
        except KeyboardInterrupt:
            pass
        except ValueError as error:  # the context is full, or the template refuses
            print(f"{error}; /clear begins anew", file=sys.stderr)
        print()

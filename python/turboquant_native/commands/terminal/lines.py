"""Reading what the person types: with editing, history and pasted texts as one at a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

_QUOTES = '"""'


class Lines(Protocol):
    """A source of lines (which may have line breaks where a text was pasted)."""

    def read(self, prompt: str) -> str:
        """The next one; EOFError at the end, KeyboardInterrupt for Ctrl-C on an empty line."""


def open_lines(history: Path, words: Iterable[str]) -> Lines:
    """The best source that standard input allows. words: completed by the tab key."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return EditedLines(history, words) if terminal else PlainLines()


def message(lines: Lines, prompt: str = "> ") -> str:
    '''One message: a line, or what stands between two `"""`, over as many lines as it takes.'''
    text = lines.read(prompt)
    begun = text.strip()
    if not begun.startswith(_QUOTES):
        return begun
    text = begun.removeprefix(_QUOTES)
    while not text.rstrip().endswith(_QUOTES):
        try:
            text += "\n" + lines.read("... ")
        except EOFError:
            return text.strip("\n")
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


class PlainLines:
    """Standard input as it is; a prompt is shown where a person sits there."""

    def read(self, prompt: str) -> str:
        """The next line."""
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class EditedLines:
    """prompt_toolkit: arrows, history over sessions, search by Ctrl-R, completion; a pasted text stays one message."""

    def __init__(self, history: Path, words: Iterable[str], **session: Any) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("c-c")
        def interrupt(event: Any) -> None:
            """Empties the line; on an empty one it is the caller's."""
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=KeyboardInterrupt)

        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            kept: Any = FileHistory(str(history))
        except OSError:  # a read-only home: the history lasts as long as the session
            kept = InMemoryHistory()
        completer = WordCompleter(list(words), sentence=True)
        self._session: Any = PromptSession(
            history=kept, completer=completer, complete_while_typing=False, key_bindings=keys, enable_history_search=False, **session
        )

    def read(self, prompt: str) -> str:
        """The next line, which may be a pasted text of several."""
        return str(self._session.prompt(prompt))

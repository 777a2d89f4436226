"""Output: answers to standard output, the rest to standard error; plain where nobody looks, never an error for what cannot be shown."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's or a stranger's text must not steer the terminal
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_SPINNER = "|/-\\"
_PATIENCE = 0.4  # seconds before a wait is worth a word


def forgiving_streams() -> None:
    """Characters that the locale cannot show become question marks instead of errors."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


class Console:
    """Standard output and error as they are now."""

    def __init__(self) -> None:
        self.out, self.err = sys.stdout, sys.stderr
        self.shows_answers = _is_terminal(self.out)
        self.shows_notes = _is_terminal(self.err)
        dumb = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self.color = self.shows_answers and not dumb

    def write(self, text: str, dim: bool = False) -> None:
        """A piece of an answer, at once."""
        if self.shows_answers:
            text = clean(text)
        self.out.write(f"{_DIM}{text}{_PLAIN}" if dim and self.color and text else text)
        self.out.flush()

    def note(self, text: str, indent: int = 0) -> None:
        """A line for the person; at a terminal broken between words, what follows the first line indented."""
        text = clean(text)
        if self.shows_notes:
            text = textwrap.fill(text, width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        print(text, file=self.err, flush=True)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[threading.Event]:
        """`what` with a clock on standard error while the block runs or until the event is set; nothing where nobody looks."""
        done = threading.Event()
        if not self.shows_notes:
            yield done
            return

        def turn() -> None:
            started, count = time.monotonic(), 0
            while not done.wait(_PATIENCE if count == 0 else 0.2):
                line = f"{_SPINNER[count % len(_SPINNER)]} {what}, {time.monotonic() - started:.0f} s"
                self.err.write("\r" + line[: width() - 1])
                self.err.flush()
                count += 1
            if count:
                self.err.write("\r" + " " * (width() - 1) + "\r")
                self.err.flush()

        thread = threading.Thread(target=turn, daemon=True)
        thread.start()
        try:
            yield _Joining(done, thread)
        finally:
            done.set()
            thread.join()


class _Joining(threading.Event):
    """An event whose `set` returns when the line is gone."""

    def __init__(self, done: threading.Event, thread: threading.Thread) -> None:
        super().__init__()
        self._done, self._thread = done, thread

    def set(self) -> None:
        super().set()
        self._done.set()
        self._thread.join()


def clean(text: str) -> str:
    """Without control characters; lines and tabs stay."""
    return _CONTROL.sub("", text)


def width() -> int:
    """Columns of the terminal."""
    return max(shutil.get_terminal_size().columns, 20)


def size(count: float) -> str:
    """Bytes for people: `812 B`, `70.5 MB`, `4.1 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """Columns side by side; where they are wider than the terminal the last one goes into lines of its own, nothing is cut."""
    cells = [list(header), *[[clean(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    narrow = columns is not None and sum(widths) + 2 * (len(widths) - 1) > columns
    lines = []
    for row in cells:
        shown = row[:-1] if narrow else row
        lines.append("  ".join(f"{cell:{w}}" for cell, w in zip(shown, widths, strict=False)).rstrip())
        if narrow:
            lines.append(f"  {row[-1]}")
    return "\n".join(lines)


def columns(stream: IO[str] | None = None) -> int | None:
    """Width for a table; None where the output is no terminal."""
    return width() if _is_terminal(stream or sys.stdout) else None


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False

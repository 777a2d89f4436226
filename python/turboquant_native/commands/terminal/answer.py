"""An answer as it comes: reasoning apart from what is said, and shown dimmed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .console import Console

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Shown:
    """What was shown. text: without reasoning; finish_reason: "stop", "length", or None where Ctrl-C stopped it."""

    text: str
    finish_reason: str | None


def show(console: Console, parts: Iterable[dict[str, Any]], waiting: str) -> Shown:
    """Shows an answer while it comes, from the chunks of a streamed completion; `waiting` with a clock before its first word.

    Ctrl-C stops it; what has come until then counts.
    """
    printer, reason, pieces = AnswerPrinter(console), None, iter(parts)
    try:
        with console.waiting(waiting) as begun:
            for part in pieces:
                choice = part["choices"][0]
                delta = choice.get("delta") or {}
                thought, said = delta.get("reasoning_content") or "", choice.get("text") or delta.get("content") or ""
                if (thought or said) and not begun.is_set():
                    begun.set()
                if thought:
                    printer.thought(thought)
                if said:
                    printer.piece(said)
                reason = choice.get("finish_reason") or reason
    except KeyboardInterrupt:
        reason = None
    finally:
        if hasattr(pieces, "close"):
            pieces.close()
        printer.end()
    return Shown(printer.text, reason)


class Reasoning:
    """Splits a text that comes in pieces: `<think>...</think>` at its beginning is reasoning."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"

    def feed(self, piece: str) -> tuple[str, str]:
        """(reasoning, answer) that are certain now."""
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held = "inside", begun[len(_OPEN) :]
            elif not _OPEN.startswith(begun):
                self._state = "after"
        thought = self._inside() if self._state == "inside" else ""
        if self._state == "gap" and (said := self._held.lstrip("\n")):
            self._state, self._held = "after", said
        if self._state != "after":
            return thought, ""
        said, self._held = self._held, ""
        return thought, said

    def finish(self) -> tuple[str, str]:
        """What was still held back."""
        text, self._held = self._held, ""
        return {"inside": (text, ""), "gap": ("", "")}.get(self._state, ("", text))

    def _inside(self) -> str:
        thought, mark, rest = self._held.partition(_CLOSE)
        if mark:
            self._state, self._held = "gap", rest
            return thought
        keep = next((n for n in range(len(_CLOSE) - 1, 0, -1) if thought.endswith(_CLOSE[:n])), 0)
        self._held = thought[len(thought) - keep :]
        return thought[: len(thought) - keep]


class AnswerPrinter:
    """Shows the pieces of an answer; `text` is what was said, without reasoning.

    Where the output is no terminal only the answer goes there.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._split = console, Reasoning()
        self.text, self.reasoning = "", ""

    def piece(self, text: str) -> None:
        """The next piece."""
        self._show(*self._split.feed(text))

    def thought(self, text: str) -> None:
        """A piece of reasoning that came apart from the answer."""
        self._show(text, "")

    def end(self) -> None:
        """There are no more."""
        self._show(*self._split.finish())
        if self.text or self._console.shows_answers:
            self._console.write("\n")

    def _show(self, thought: str, said: str) -> None:
        if thought and self._console.shows_answers:
            if not self.reasoning and not self._console.color:
                self._console.write("(thinking) ")
            self._console.write(thought, dim=True)
        self.reasoning += thought
        if said and not self.text and self.reasoning and self._console.shows_answers:
            self._console.write("\n\n" if self._console.color else "\n\n(answer) ")
        self.text += said
        if said:
            self._console.write(said)

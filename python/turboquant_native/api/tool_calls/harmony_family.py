"""gpt-oss's answers: messages in channels, for thinking, for calls and for the user."""

import re
from collections.abc import Mapping
from typing import Any

from ...engine.streaming import undecided_length
from .events import ReasoningDelta, TextDelta
from .parser import CallParser, Channels

_CHANNEL, _RECIPIENT = re.compile(r"<\|channel\|>\s*(\w+)"), re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_BODY = "<|message|>"


class HarmonyParser(CallParser):
    """`<|channel|>analysis<|message|>...<|end|>` is thinking, `<|channel|>commentary to=functions.name<|message|>{...}<|call|>` a call, and
    what stands in other channels is the answer's text. An answer without such headers is text."""

    reads_all = True
    answer_begins = "<|channel|>final<|message|>"
    channels = Channels(
        thinking="<|channel|>analysis<|message|>",
        thinking_ends="<|end|>",
        next_message="<|start|>assistant",
        call_before="<|channel|>commentary to=functions.",
        call_behind=" <|constrain|>json<|message|>",
    )

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._state = self._in_first_header
        self._channel = ""
        self._in_call = False

    @classmethod
    def marks(cls) -> tuple[str, ...]:
        return ("<|channel|>", "<|constrain|>", _BODY, *_ENDS)

    def _in_first_header(self) -> bool:
        start = self._buffer.lstrip()
        if start and not any(mark.startswith(start) or start.startswith(mark) for mark in self.marks()):
            self._channel, self._state = "final", self._in_body
            return True
        return self._in_header()

    def _in_header(self) -> bool:
        """A channel, and before it `<|start|>assistant`, whose mark may have ended the message before."""
        end = self._buffer.find(_BODY)
        if end < 0:
            if self._ended:
                self._buffer = ""
            return False
        header, self._buffer = self._buffer[:end], self._buffer[end + len(_BODY) :]
        self._open(header)
        self._state = self._in_body
        return True

    def _open(self, header: str) -> None:
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._channel = channel[1] if channel else "final"
        self._in_call = recipient is not None and bool(self._tools)
        self.is_thinking = self._channel == "analysis" and not self._in_call
        if recipient is not None and self._in_call:
            self._begin(recipient[1])

    def _in_body(self) -> bool:
        found = [(place, mark) for mark in _ENDS if (place := self._buffer.find(mark)) >= 0]
        end, mark = min(found, default=(-1, ""))
        held = 0 if self._ended or found else undecided_length(self._buffer, _ENDS)
        text = self._buffer[: end if found else len(self._buffer) - held]
        self._give(text)
        self._buffer = self._buffer[len(text) + len(mark) :]
        if not found:
            return False
        self._channel, self._in_call, self.is_thinking, self._state = "", False, False, self._in_header
        return True

    def _give(self, text: str) -> None:
        if self._in_call:
            self._argue(text)
        elif text:
            self._events.append(ReasoningDelta(text) if self._channel == "analysis" else TextDelta(text))

"""What the parsers of all families share: text that may hold markup is held back no longer than it must be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.streaming import undecided_length
from .events import AnswerEvent, CallArguments, CallStart, TextDelta
from .json_scanner import JsonCall


@dataclass(frozen=True)
class Channels:
    """The headers of a family whose answers are messages in channels.

    Attributes:
        thinking: opens a message of thinking; thinking_ends: closes it; next_message: what stands before the next header.
        call_before, call_behind: around a function's name in the header of its call.
    """

    thinking: str
    thinking_ends: str
    next_message: str
    call_before: str
    call_behind: str

    def call(self, name: str) -> str:
        """The header of a call."""
        return f"{self.call_before}{name}{self.call_behind}"


class CallParser:
    """Splits an answer into text and calls of tools while it comes.

    A parser is a state that consumes the buffer; a state returns True when the next one (or it again) can go on. Markup that turns out
    to be no call becomes text again, unless its call has begun already.

    Args:
        tools: parameters (a JSON schema) by the tool's name.
    """

    opening: tuple[str, ...] = ()  # texts that begin a call
    closing: tuple[str, ...] = ()  # texts that end one; they are no text of the answer once there was a call
    reads_all = False  # answers have the family's markup even where there are no tools
    is_thinking = False  # the answer stands inside of thinking that the parser itself tells from the text
    channels: Channels | None = None  # of families that write a demanded call in their own form
    answer_begins = ""  # the text behind which the answer itself stands, in families whose answers have other parts before it
    json_marker: str | None = None  # what stands before {"name", "arguments"} wherever a call is made, so that a grammar can begin there
    binds_arguments = False  # arguments are JSON behind the tool's name, so that a grammar can begin there: `behind_name`

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._tools = tools
        self._buffer = ""
        self._events: list[AnswerEvent] = []
        self._calls = 0
        self._ended = False
        self._after_call = False  # white space between calls is no text
        self._space = ""  # at the end of the text so far
        self._marker = ""  # what opened the present call
        self._state: Callable[[], bool] = self._in_text

    @classmethod
    def marks(cls) -> tuple[str, ...]:
        """All texts of the markup that may be single tokens."""
        return cls.opening + cls.closing

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._calls

    def push(self, text: str) -> list[AnswerEvent]:
        """Takes the next piece of the answer; returns what is certain now."""
        self._buffer += text
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[AnswerEvent]:
        """The answer has ended: what was held back."""
        self._ended = True
        return self.push("")

    def behind_name(self) -> tuple[str | None, bool]:
        """Of the call that began last: what stands behind its name (None: arguments stood before it), and whether that has a key."""
        raise NotImplementedError

    # --- text ----------------------------------------------------------------------------------------------------------------------------

    def _in_text(self) -> bool:
        if self._after_call:
            self._space, self._buffer = "", self._buffer.lstrip()
        markers = self.opening + (self.closing if self._calls else ())
        hits = [(position, -len(marker), marker) for marker in markers if (position := self._buffer.find(marker)) >= 0]
        if hits:
            position, _, marker = min(hits)
            self._say_before(position)
            if any(self._waits_for(longer) for longer in markers if longer.startswith(marker)):
                return False
            self._buffer = self._buffer[len(marker) :]
            if marker in self.opening:
                self._marker = self._space + marker
                self._state = self._opened(marker)
            self._space = ""
            return True
        self._say_before(len(self._buffer) - (0 if self._ended else undecided_length(self._buffer, markers)))
        if self._ended and not self._calls:
            self._say(self._space)
        return False

    def _say_before(self, end: int) -> None:
        """Gives out the buffer up to `end`; white space waits for what follows it, because before a call it is no text."""
        text = self._space + self._buffer[:end]
        said = text.rstrip()
        self._space, self._buffer = text[len(said) :], self._buffer[end:]
        self._say(said)

    def _opened(self, marker: str) -> Callable[[], bool]:
        """The state that follows an opening marker."""
        raise NotImplementedError

    def _say(self, text: str) -> None:
        if text:
            self._after_call = False
            self._events.append(TextDelta(text))

    def _fall_back(self, raw: str) -> bool:
        """What looked like a call is text."""
        self._say(self._marker + raw)
        self._marker = ""
        self._state = self._in_text
        return True

    def _skip_space(self) -> bool:
        """Whether something else than white space stands in the buffer, whose beginning it then is."""
        rest = self._buffer.lstrip()
        self._marker += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        return bool(rest)

    def _waits_for(self, marker: str) -> bool:
        """Whether the buffer may still become this marker."""
        return not self._ended and len(self._buffer) < len(marker) and marker.startswith(self._buffer)

    # --- calls ---------------------------------------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._events.append(CallStart(self._calls, name))
        self._calls += 1
        self._after_call = True

    def _argue(self, text: str) -> None:
        if text:
            self._events.append(CallArguments(self._calls - 1, text))


class JsonCallParser(CallParser):
    """For families whose calls are objects with a name and arguments."""

    binds_arguments = True

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._call = JsonCall()
        self._begun = False
        self._only_known = False  # without a marker, only a tool's name tells a call from other JSON

    def behind_name(self) -> tuple[str | None, bool]:
        return self._call.behind_name, True

    def _read_object(self, only_known: bool = False) -> Callable[[], bool]:
        """The state that reads one object, for the caller to set."""
        self._call, self._begun, self._only_known = JsonCall(), False, only_known
        return self._in_object

    def _in_object(self) -> bool:
        call = self._call
        self._buffer = self._buffer[call.feed(self._buffer) :]
        refused = self._only_known and call.name is not None and call.name not in self._tools
        if not self._begun and (call.broken or refused or (self._ended and call.name is None)):
            return self._fall_back(call.raw)
        if call.name is not None and not self._begun and not call.broken:
            self._begun = True
            self._begin(call.name)
        if self._begun:
            self._argue(call.take_arguments())
        if call.complete or call.broken:
            self._state = self._after_object
            return True
        return False

    def _after_object(self) -> bool:
        """Behind a call."""
        self._state = self._in_text
        return True


def functions(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Parameters by name, of tools in OpenAI's form."""
    described = [tool["function"] for tool in tools or () if isinstance(tool.get("function"), Mapping)]
    return {str(function.get("name")): function.get("parameters") or {} for function in described}

"""An answer taken apart while it comes: thinking, text, calls of tools."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engine.vocabulary import Vocabulary
from . import reasoning, tool_calls
from .reasoning import ReasoningSplitter
from .tool_calls import AnswerEvent, CallArguments, CallParser, CallStart, ReasoningDelta, TextDelta


class AnswerReader:
    """Turns the text of an answer into events.

    Args:
        parser: reads calls of tools; None where the request allows none.
        splitter: tells the thinking apart; None for a model that does not think.
        one_call: the answer ends where a second call begins.
    """

    def __init__(self, parser: CallParser | None = None, splitter: ReasoningSplitter | None = None, one_call: bool = False) -> None:
        self._parser, self._splitter, self._one_call = parser, splitter, one_call

    @property
    def calls(self) -> int:
        """Calls that have begun, and are part of the answer."""
        found = self._parser.calls if self._parser else 0
        return min(found, 1) if self._one_call else found

    @property
    def is_cut(self) -> bool:
        """Whether a call beyond the only one has begun."""
        return self._one_call and self._parser is not None and self._parser.calls > 1

    @property
    def is_thinking(self) -> bool:
        """Whether the answer stands inside of the thinking."""
        return self._splitter.is_thinking if self._splitter is not None else self._parser is not None and self._parser.is_thinking

    def push(self, text: str) -> list[AnswerEvent]:
        """Takes the next piece of the answer; returns what is certain now."""
        thinking, answer = self._splitter.push(text) if self._splitter else ("", text)
        return self._events(thinking, answer)

    def finish(self) -> list[AnswerEvent]:
        """The answer has ended: what was held back."""
        thinking, answer = self._splitter.finish() if self._splitter else ("", "")
        return self._events(thinking, answer) + self._kept(self._parser.finish if self._parser else list)

    def _events(self, thinking: str, answer: str) -> list[AnswerEvent]:
        events: list[AnswerEvent] = [ReasoningDelta(thinking)] if thinking else []
        parser = self._parser
        if parser is not None:
            return events + (self._kept(lambda: parser.push(answer)) if answer else [])
        return events + ([TextDelta(answer)] if answer else [])

    def _kept(self, read: Callable[[], list[AnswerEvent]]) -> list[AnswerEvent]:
        """What is read, as far as it is part of the answer."""
        if self.is_cut:
            return []
        events = read()
        second = next((i for i, event in enumerate(events) if isinstance(event, CallStart) and event.index > 0), None)
        return events[:second] if self._one_call else events


class ArgumentsParser(CallParser):
    """The answer is one tool's arguments and nothing else: a grammar sees to that."""

    def __init__(self, name: str) -> None:
        super().__init__({})
        self._name = name
        self._state = self._in_arguments

    def _in_arguments(self) -> bool:
        if self._buffer and not self._calls:
            self._begin(self._name)
        self._argue(self._buffer)
        self._buffer = ""
        return False


def reader_for(
    template: str,
    prompt: str,
    tools: Sequence[Mapping[str, Any]] | None,
    forced: str | None = None,
    bare: bool = False,
    one_call: bool = False,
) -> AnswerReader:
    """The reader of answers to one request.

    Args:
        template: the chat template, jinja2 text. prompt: what it rendered.
        tools: those that the answer may call, in OpenAI's form.
        forced: the tool whose bare arguments a grammar makes the answer. bare: a grammar makes the answer {"name", "arguments"}.
        one_call: the answer ends where a second call begins.
    """
    tags = reasoning.thinking_tags(template)
    splitter = None
    if tags is not None and not reasoning.thinking_is_over(prompt, tags):
        splitter = ReasoningSplitter(tags, reasoning.thinking_is_open(prompt, tags))
    if forced is not None:
        return AnswerReader(ArgumentsParser(forced), splitter)
    functions = tool_calls.functions(tools)
    family = tool_calls.BareJsonParser if bare else tool_calls.family_of(template)
    return AnswerReader(family(functions) if functions or family.reads_all else None, splitter, one_call)


def shown_tokens(vocabulary: Vocabulary, template: str, with_tools: bool) -> frozenset[int]:
    """The control tokens that a reader must see: the family's marks of thinking, and of calls where there are tools."""
    tags = reasoning.thinking_tags(template)
    family = tool_calls.family_of(template)
    marks = [*((tags.open, tags.close) if tags else ()), *(family.marks() if with_tools or family.reads_all else ())]
    found = {vocabulary.control_token(mark) for mark in marks}
    return frozenset(token for token in found if token is not None)


def message_of(events: Sequence[AnswerEvent], call_ids: Sequence[str]) -> dict[str, Any]:
    """OpenAI's assistant message of a whole answer."""
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    thinking = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    calls: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append({"id": call_ids[event.index], "type": "function", "function": {"name": event.name, "arguments": ""}})
        elif isinstance(event, CallArguments):
            calls[event.index]["function"]["arguments"] += event.text
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message

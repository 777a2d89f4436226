"""What an answer consists of, as it comes: reasoning, text, and calls of tools."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The model begins to call a tool; calls of one answer count from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; all pieces together are the text of a JSON object."""

    index: int
    text: str


AnswerEvent = TextDelta | ReasoningDelta | CallStart | CallArguments

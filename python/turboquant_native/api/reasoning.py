"""What a model thinks before it answers, told from the answer."""

from dataclasses import dataclass

from ..engine.streaming import undecided_length


@dataclass(frozen=True)
class ThinkingTags:
    """How a family marks its thinking."""

    open: str
    close: str


_TAGS = (
    ThinkingTags("<think>", "</think>"),
    ThinkingTags("[THINK]", "[/THINK]"),
    ThinkingTags("<|channel>thought", "<channel|>"),
    ThinkingTags("<seed:think>", "</seed:think>"),
)


def thinking_tags(template: str) -> ThinkingTags | None:
    """The tags that a chat template (jinja2 text) knows, None for a model that does not think."""
    return next((tags for tags in _TAGS if tags.close in template), None)


def thinking_is_open(prompt: str, tags: ThinkingTags) -> bool:
    """Whether a rendered prompt ends inside of the thinking, so that the answer begins there."""
    return prompt.rstrip().endswith(tags.open)


def thinking_is_over(prompt: str, tags: ThinkingTags) -> bool:
    """Whether a rendered prompt ends behind the thinking: the template has closed it for the model."""
    return prompt.rstrip().endswith(tags.close)


class ReasoningSplitter:
    """Tells the thinking from the answer while both come. White space around the tags belongs to neither.

    Args:
        tags: how the family marks it.
        is_open: the prompt has opened the thinking.
    """

    def __init__(self, tags: ThinkingTags, is_open: bool) -> None:
        self._tags = tags
        self._buffer = ""
        self._phase = "thinking" if is_open else "start"  # then "answer"
        self._begun = False  # something of the present part was given out

    @property
    def is_thinking(self) -> bool:
        """Whether the answer stands inside of the thinking."""
        return self._phase == "thinking"

    def push(self, text: str) -> tuple[str, str]:
        """Takes the next piece; returns what is certain now: (thinking, answer)."""
        self._buffer += text
        if self._phase == "start":
            self._start(ended=False)
        thinking = self._think(ended=False) if self._phase == "thinking" else ""
        return thinking, self._answer() if self._phase == "answer" else ""

    def finish(self) -> tuple[str, str]:
        """The answer has ended: what was held back."""
        if self._phase == "start":
            self._start(ended=True)
        thinking = self._think(ended=True) if self._phase == "thinking" else ""
        return thinking, self._answer() if self._phase == "answer" else ""

    def _start(self, ended: bool) -> None:
        """Only at its beginning can an answer open the thinking."""
        text = self._buffer.lstrip()
        if text.startswith(self._tags.open):
            self._buffer, self._phase = text[len(self._tags.open) :], "thinking"
        elif ended or not self._tags.open.startswith(text):
            self._phase, self._begun = "answer", True

    def _think(self, ended: bool) -> str:
        if not self._begun:
            self._buffer = self._buffer.lstrip()
        end = self._buffer.find(self._tags.close)
        if end >= 0:
            text = self._buffer[:end].rstrip()
            self._buffer, self._phase, self._begun = self._buffer[end + len(self._tags.close) :], "answer", False
            return text
        certain = len(self._buffer) - (0 if ended else undecided_length(self._buffer, (self._tags.close,)))
        text = self._buffer[:certain] if ended else self._buffer[:certain].rstrip()
        self._begun |= bool(text)
        self._buffer = self._buffer[len(text) :]
        return text

    def _answer(self) -> str:
        if not self._begun:
            self._buffer = self._buffer.lstrip()
        text, self._buffer = self._buffer, ""
        self._begun |= bool(text)
        return text

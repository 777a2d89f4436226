"""A conversation: what was said, what of it still fits the model's context, and the next answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...api.chat_format import TemplateError
from ...common.json_files import read_object, write_json

Message = dict[str, str]
_ROLES = ("user", "assistant")


class Conversation:
    """Messages so far, and the model that answers. What was said before stays in the engine's cache.

    Args:
        llm: a `Llama`.
        options: of `create_chat_completion`.
    """

    def __init__(self, llm: Any, system: str | None, options: dict[str, Any]) -> None:
        self._llm = llm
        self.system, self.options = system, options
        self.messages: list[Message] = []
        self.first = 0  # messages before this one no longer fit and are not sent

    def clear(self) -> None:
        """Forgets what was said; the system message stays."""
        self.messages, self.first = [], 0

    def ask(self, text: str) -> Iterator[dict[str, Any]]:
        """Adds the user's message; the answer in pieces (chunks of `create_chat_completion`), which `answered` then takes up.

        ValueError where the message alone does not fit, or the template refuses; the message is not kept then.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            self._fit()
            parts: Iterator[dict[str, Any]] = self._llm.create_chat_completion(self._sent(), stream=True, **self.options)
        except ValueError:
            self.messages.pop()
            raise
        return parts

    def answered(self, text: str, whole: bool) -> None:
        """Keeps the answer. One that was stopped before its first word takes the question with it: it can be asked again."""
        if text or whole:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def take_back(self) -> tuple[str, str] | None:
        """Removes the last question and its answer and returns them; None where there is none."""
        if len(self.messages) < 2:
            return None
        question, answer = self.messages[-2:]
        del self.messages[-2:]
        self.first = min(self.first, len(self.messages))
        return question["content"], answer["content"]

    def used(self) -> int:
        """Tokens of the context that the conversation takes."""
        return prompt_length(self._llm, self._sent()) if self.messages else 0

    def save(self, path: Path) -> None:
        """As JSON: {"format": "tqn-chat", "system", "messages": [{"role", "content"}, ...]}."""
        write_json(path, {"format": "tqn-chat", "system": self.system, "messages": self.messages})

    def load(self, path: Path) -> None:
        """Takes up a saved conversation; ValueError names what is wrong with the file, and nothing changes then."""
        described = read_object(path)
        system, messages = described.get("system"), described.get("messages")
        if described.get("format") != "tqn-chat" or not isinstance(messages, list) or not (system is None or isinstance(system, str)):
            raise ValueError(f"{path}: is no saved conversation")
        for index, message in enumerate(messages):
            role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
            if role != _ROLES[index % 2] or not isinstance(content, str):
                raise ValueError(f"{path}: messages[{index}] must be a text of the {_ROLES[index % 2]}")
        kept = messages[: len(messages) // 2 * 2]  # a question without an answer would be followed by another
        self.system, self.first = system, 0
        self.messages = [{"role": message["role"], "content": message["content"]} for message in kept]

    def _sent(self) -> list[Message]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return opening + self.messages[self.first :]

    def _fit(self) -> None:
        """Leaves out the oldest turns where there would be too little room for an answer; then half of the context at once, so that not
        every answer has to read the rest anew."""
        n_ctx = self._llm.n_ctx()
        if self.used() <= n_ctx - self._room(n_ctx):
            return
        while self.first + 2 < len(self.messages) and self.used() > n_ctx // 2:
            self.first += 2
        if self.used() >= n_ctx:
            raise PromptTooLong(f"the prompt does not fit the context of {n_ctx} tokens")

    def _room(self, n_ctx: int) -> int:
        """Tokens to keep free for the answer."""
        wanted = self.options.get("max_tokens") or -1
        return min(n_ctx // 4, wanted if wanted > 0 else n_ctx)


def prompt_length(llm: Any, messages: Sequence[Message]) -> int:
    """Tokens of the prompt that messages make; n_ctx + 1 for one that is longer than the context.

    Raises TemplateError where the template refuses them.
    """
    try:
        return int(llm.create_chat_completion(messages, max_tokens=0)["usage"]["prompt_tokens"])
    except TemplateError:
        raise
    except ValueError:
        return int(llm.n_ctx()) + 1


class PromptTooLong(ValueError):
    """A prompt that does not fit the context, even alone."""

"""From messages to the tokens of a prompt, through the model's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import chat_format
from .logprobs import token_name
from .session import Session

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: the template (jinja2 text), what it made of the messages, and the tokens of that."""

    template: str
    text: str
    tokens: list[int]


def prompt_of(
    session: Session,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """A conversation by the model's template, ready for the assistant's turn. The template writes BOS itself.

    Args:
        tools: given to the template, which is then the file's "tool_use" where it has one.
        chat_template_kwargs: more variables of the template, such as {"enable_thinking": False}.
        add_generation_prompt: false: the conversation as it stands, to be scored.
    """
    vocabulary = session.vocabulary
    template = chat_format.choose_template(session.chat_format, session.metadata, lambda text: vocabulary.id_of(text) >= 0, bool(tools))
    knows_calls = "tool_calls" in template
    values = {
        "tools": list(tools) if tools else None,
        "bos_token": _text_of(session, vocabulary.bos),
        "eos_token": _text_of(session, vocabulary.eos),
        "add_generation_prompt": add_generation_prompt,
        **_checked(chat_template_kwargs),
    }
    text = chat_format.render(template, [_plain(index, message, knows_calls) for index, message in enumerate(messages)], **values)
    vocabulary.check_length(text, session.n_ctx())
    return Prompt(template, text, vocabulary.encode(text, special=True))


def _text_of(session: Session, token: int) -> str:
    return token_name(session.vocabulary, token) if token >= 0 else ""


def _checked(given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"chat_template_kwargs must be a dict such as {{'enable_thinking': False}}, got {given!r}")
    taken = [name for name in ("messages", "tools") if name in (given or {})]
    if taken:
        raise ValueError(f"chat_template_kwargs has {taken[0]!r}, which is an argument of its own")
    return dict(given or {})


def _text_part(index: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"message {index} has the content part {part!r}; a part is an object such as {{'type': 'text', 'text': ...}}")
    if (kind := part.get("type")) != "text":
        raise ValueError(f"message {index} has content of type {kind}; only text is supported")
    if not isinstance(part.get("text"), str):
        raise ValueError(f"message {index} has a part without text")
    return str(part["text"])


def _plain(index: int, message: Message, knows_calls: bool) -> Message:
    """A message whose content is text; ValueError names the message that has no role, or parts that are no text.

    A message that is only a tool call has no content; it stays None for a template that knows tool calls, and may ask for it.
    """
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"message {index} has no role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(index, part) for part in content)
    if content is None and not (knows_calls and message.get("tool_calls")):
        content = ""
    return {**message, "content": content}

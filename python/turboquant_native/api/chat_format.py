"""Chat templates: from messages to the prompt that a model was trained on.

A template comes with the model file and may be hostile: it is rendered in a process of its own, whose time and memory are bounded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .template_process import TemplateError, TemplateProcess

__all__ = ["NAMED_FORMATS", "TemplateError", "choose_template", "render"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NAMED_FORMATS = {"chatml": CHATML, "llama-3": LLAMA_3, "gemma": GEMMA}
_MARKS = {"chatml": "<|im_start|>", "llama-3": "<|start_header_id|>", "gemma": "<start_of_turn>"}


_PREFIX = "tokenizer.chat_template."
_renderer = TemplateProcess()


def render(source: str, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **values: Any) -> str:
    """The prompt that a template makes of messages.

    Args:
        source: jinja2 text, or the name of a template of NAMED_FORMATS.
        messages: [{"role": ..., "content": ...}, ...].
        add_generation_prompt: end with the opening of the assistant's turn.
        **values: bos_token, eos_token, tools and what else the template may use.

    Raises TemplateError for a template that is broken, refuses the messages or exceeds the bounds.
    """
    values = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **values}
    return _renderer.render(NAMED_FORMATS.get(source, source), {"messages": list(messages), **values})


def choose_template(
    chat_format: str | None, metadata: Mapping[str, Any], has_token: Callable[[str], bool], with_tools: bool = False
) -> str:
    """The template to use: the named one, the file's, else the known one whose control token the model has.

    Args:
        chat_format: a name of NAMED_FORMATS, the name of one of the file's templates, jinja2 text, or None for the file's own.
        metadata: of the model file: "tokenizer.chat_template", and others under "tokenizer.chat_template.NAME".
        has_token: whether the model has a token of that name.
        with_tools: choose the file's template "tool_use", where it has one, as transformers does.

    Raises TemplateError when the name is unknown, or there is nothing to choose.
    """
    stored = {key.removeprefix(_PREFIX): str(text) for key, text in metadata.items() if key.startswith(_PREFIX)}
    if "tokenizer.chat_template" in metadata:
        stored["default"] = str(metadata["tokenizer.chat_template"])
    if chat_format:
        return _named(chat_format, stored)
    if with_tools and stored.get("tool_use"):
        return stored["tool_use"]
    if stored.get("default"):
        return stored["default"]
    for name, mark in _MARKS.items():
        if has_token(mark):
            return NAMED_FORMATS[name]
    names = ", ".join([*NAMED_FORMATS, *stored])
    raise TemplateError(f"the model file has no default chat template; give chat_format (one of {names} or a jinja2 template)")


def _named(chat_format: str, stored: Mapping[str, str]) -> str:
    known = {**stored, **NAMED_FORMATS}
    if chat_format not in known and "{" not in chat_format:
        raise TemplateError(f"unknown chat_format {chat_format!r}; known: {', '.join([*NAMED_FORMATS, *stored])}, or a jinja2 template")
    return known.get(chat_format, chat_format)

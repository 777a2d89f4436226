"""Chat templates: from messages to the prompt that a model was trained on.

A template comes with the model file and may be hostile: it runs in jinja2's immutable sandbox, and its work is bounded.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2.parser import Parser

MAX_CHARACTERS = 16 << 20  # of one rendered prompt and of any value on the way
MAX_ITERATIONS = 1 << 20  # of all loops of one rendering together
MAX_WIDTH = 4096  # of padding and indentation
_FILTERS_WITH_WIDTH = ("center", "indent", "batch", "slice")

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


class TemplateError(ValueError):
    """A chat template that cannot be used, or that refuses the messages."""


class _GenerationTag(Extension):
    """transformers' `{% generation %}` marks what the assistant said; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: "Parser") -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Besides the sandbox's rules: loops count against a budget, values stay short."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in "**":
            _check_product(operator, left, right)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check_widths(args)
            if getattr(function, "__name__", "") in ("format", "format_map"):
                _check_format(owner)
        return _bounded(super().call(context, function, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        for block in template.find_all(nodes.AssignBlock):
            block.filter = nodes.Filter(block.filter, "bounded", [], [], None, None, lineno=block.lineno)
        for joined in list(template.find_all(nodes.Concat)):
            joined.nodes[0] = nodes.Filter(joined.nodes[0], "bounded", [], [], None, None, lineno=joined.lineno)
        return template


def _check_product(operator: str, left: Any, right: Any) -> None:
    size = max((len(value) for value in (left, right) if isinstance(value, (str, list, tuple))), default=0)
    count = max((abs(value) for value in (left, right) if isinstance(value, int)), default=0)
    if size * count > MAX_CHARACTERS or (operator == "**" and count > 1024):
        raise SecurityError("a chat template computes a value that is too large")


def _check_widths(arguments: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in arguments):
        raise SecurityError("a chat template asks for a text that is too wide")


def _check_format(text: str) -> None:
    if re.search(r"\d{5}|\*", text):
        raise SecurityError("a chat template formats with a width that is too large")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_CHARACTERS:
        raise SecurityError("a chat template builds a value that is too long")
    return value


def _bounded_filter(name: str, function: Any) -> Any:
    """A filter of jinja2 whose numbers and result are bounded."""

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()) if name in _FILTERS_WITH_WIDTH else ())
        if name == "format":
            _check_format(str(args[0]))
        return _bounded(function(*args, **kwargs))

    return bounded


@jinja2.pass_context
def _counted(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    budget = context.parent["_iterations"]
    for item in items:
        budget[0] -= 1
        if budget[0] < 0:
            raise SecurityError(f"a chat template loops more than {MAX_ITERATIONS} times")
        yield item


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as it is: jinja2's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(f"the chat template refuses: {message}")


def _environment() -> _BoundedEnvironment:
    environment = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    environment.filters.update({name: _bounded_filter(name, function) for name, function in environment.filters.items()})
    environment.filters.update(tojson=_tojson, counted=_counted, bounded=_bounded)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=lambda form: datetime.now().strftime(form))
    return environment


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateError(f"the chat template cannot be read: {error}") from error


def render(source: str, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **values: Any) -> str:
    """The prompt that a template makes of messages.

    Args:
        source: jinja2 text, or the name of a template of NAMED_FORMATS.
        messages: [{"role": ..., "content": ...}, ...].
        add_generation_prompt: end with the opening of the assistant's turn.
        **values: bos_token, eos_token, tools and what else the template may use.

    Raises TemplateError for a template that is broken, refuses the messages or exceeds the bounds.
    """
    template = _compile(NAMED_FORMATS.get(source, source))
    values = {"tools": None, "documents": None, **values}
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(
            messages=list(messages), add_generation_prompt=add_generation_prompt, _iterations=[MAX_ITERATIONS], **values
        ):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise SecurityError(f"the prompt exceeds {MAX_CHARACTERS} characters")
    except TemplateError:
        raise
    except (jinja2.TemplateError, RecursionError, TypeError, ValueError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise TemplateError(f"the chat template failed: {error}") from error
    return "".join(pieces)


def choose_template(chat_format: str | None, metadata: dict[str, Any], has_token: Any) -> str:
    """The template to use: the named one, the file's, else the known one whose control token the model has.

    Args:
        chat_format: a name of NAMED_FORMATS, jinja2 text, or None for the file's own.
        metadata: of the model file.
        has_token: f(text) -> bool, whether the model has a token of that name.

    Raises TemplateError when the name is unknown, or there is nothing to choose.
    """
    if chat_format and chat_format not in NAMED_FORMATS and "{" not in chat_format:
        raise TemplateError(f"unknown chat_format {chat_format!r}; known: {', '.join(NAMED_FORMATS)}, or a jinja2 template")
    if chat_format:
        return NAMED_FORMATS.get(chat_format, chat_format)
    stored = metadata.get("tokenizer.chat_template")
    if stored:
        return str(stored)
    for name, mark in _MARKS.items():
        if has_token(mark):
            return NAMED_FORMATS[name]
    raise TemplateError(f"the model file has no chat template; give chat_format (one of {', '.join(NAMED_FORMATS)} or a jinja2 template)")

"""Renders chat templates in a process of its own: the child's side. Its parent is api/template_process.py, which starts it as a script.

A template is code from a stranger. Here it has jinja2's immutable sandbox, a bounded address space and a watchdog that needs neither the
interpreter nor the parent. Nothing but jinja2 and the standard library is imported, so that it starts quickly.
Lines of JSON go both ways: {"source", "values"} -> {"text"} or {"error"}; the first line out says that the process is ready.
"""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2.parser import Parser

MAX_CHARACTERS = 16 << 20  # of one rendered prompt


class _GenerationTag(Extension):
    """transformers' `{% generation %}` marks what the assistant said; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: "Parser") -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Arguments(dict[str, Any]):
    """Arguments of a tool call: a mapping for templates that serialize it, and its JSON text for those that print it."""

    def __init__(self, text: str, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: Any) -> str:
        return self._text + str(other)

    def __radd__(self, other: Any) -> str:
        return str(other) + self._text


class _RefusedError(Exception):
    """What a template says by raise_exception."""


def _raise_exception(message: str) -> None:
    raise _RefusedError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as it is: jinja2's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=lambda form: datetime.now().strftime(form))
    return environment.from_string(source)


def _parsed(function: Any) -> Any:
    """A function call whose arguments, OpenAI's JSON text, are the mapping that templates expect; others stay as they are."""
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return function
    text = function["arguments"] or "{}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return function
    return {**function, "arguments": _Arguments(text, values)} if isinstance(values, dict) else function


def _parsed_call(call: Any) -> Any:
    """A tool call in OpenAI's form, or a bare function."""
    return {**call, "function": _parsed(call["function"])} if isinstance(call, dict) and "function" in call else _parsed(call)


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose tool calls have their arguments as mappings."""
    message = dict(message)
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_parsed_call(call) for call in message["tool_calls"]]
    if "function_call" in message:
        message["function_call"] = _parsed(message["function_call"])
    return message


def _render(source: str, values: dict[str, Any]) -> str:
    pieces: list[str] = []
    length = 0
    messages = [_with_arguments(message) for message in values.pop("messages")]
    for piece in _compile(source).generate(messages=messages, **values):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise OverflowError(f"the prompt exceeds {MAX_CHARACTERS} characters")
    return "".join(pieces)


def _line_of(error: BaseException) -> str:
    """` in line 3`, where the template's line is known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None and not isinstance(error, jinja2.TemplateSyntaxError):
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<template>" else line
        trace = trace.tb_next
    return f" in line {line}" if isinstance(line, int) else ""


def _explain(error: Exception) -> str:
    if isinstance(error, _RefusedError):
        return f"the chat template refuses: {error}"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"the chat template cannot be read{_line_of(error)}: {error.message}"
    return f"the chat template failed{_line_of(error)}: {type(error).__name__}: {error}"[:2000]


def answer(request: bytes) -> dict[str, str]:
    """{"text": the prompt} or {"error": what is wrong with the template}."""
    try:
        return {"text": _render(**json.loads(request))}
    except MemoryError:
        raise  # ends the process, whose heap is no longer worth keeping
    except Exception as error:  # a template may raise anything
        return {"error": _explain(error)}


def _bound_memory(size: int) -> None:
    """Lets the process grow by `size` bytes; does nothing where the system has no such limit."""
    if sys.platform == "win32":
        return
    import resource

    try:
        with open("/proc/self/statm", "rb") as statm:
            present = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + size, present + size))
    except (OSError, ValueError):
        return


def serve(read: Callable[[], bytes], write: Callable[[bytes], Any], seconds: float) -> None:
    """Answers requests until there are no more; a request that takes longer than `seconds` ends the process."""
    with open(os.devnull, "wb") as nowhere:
        while request := read():
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            reply = json.dumps(answer(request)).encode() + b"\n"
            faulthandler.cancel_dump_traceback_later()
            write(reply)


def main() -> None:
    """Arguments: seconds for one request, bytes of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches every process; the parent decides
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    _bound_memory(int(sys.argv[2]))

    def write(reply: bytes) -> None:
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()

    serve(sys.stdin.buffer.readline, write, float(sys.argv[1]))


if __name__ == "__main__":
    main()

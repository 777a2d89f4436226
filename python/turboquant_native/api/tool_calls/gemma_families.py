"""Gemma's calls: `call:name{key:value}` between control tokens, and functions called in Python."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ...engine.streaming import undecided_length
from .json_families import BareJsonParser
from .parser import CallParser


class BraceCallParser(CallParser):
    """`call:name{text:<quote>a<quote>,number:1,list:[...],object:{...}}`; keys are bare, strings stand between quote tokens."""

    quote = ""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._nested: list[str] = []  # open brackets
        self._key_next = False

    @classmethod
    def marks(cls) -> tuple[str, ...]:
        return (*super().marks(), cls.quote)

    def _opened(self, marker: str) -> Callable[[], bool]:
        return self._in_name

    def _in_name(self) -> bool:
        head = re.match(r"\s*call:([^\s{}<>]+)\s*\{", self._buffer)
        if head is None:
            possible = re.fullmatch(r"\s*(c(a(l(l(:[^\s{}<>]*\s*)?)?)?)?)?", self._buffer)
            if possible and not self._ended:
                return False
            raw, self._buffer = self._buffer, ""
            return self._fall_back(raw)
        self._begin(head[1])
        self._argue("{")
        self._buffer = self._buffer[head.end() :]
        self._nested, self._key_next = ["{"], True
        self._state = self._in_arguments
        return True

    def _in_arguments(self) -> bool:
        if not self._nested:
            self._state = self._in_text
            return True
        if not self._skip_space() or self._waits_for(self.quote):
            return False
        if self._buffer.startswith(self.quote):
            self._buffer = self._buffer[len(self.quote) :]
            self._argue('"')
            self._state = self._in_string
            return True
        character = self._buffer[0]
        if character in "{[":
            self._nested.append(character)
            self._key_next = character == "{"
        elif character in "}]":
            self._nested.pop()
            character = "" if not self._nested and character == "]" else character
        elif character == ",":
            self._key_next = self._nested[-1] == "{"
        else:
            return self._scalar_or_key()
        self._argue(character)
        self._buffer = self._buffer[1:]
        return True

    def _scalar_or_key(self) -> bool:
        end = re.search(r":" if self._key_next else r"[,}\]]", self._buffer)
        if end is None:
            return False
        word = self._buffer[: end.start()].strip()
        if self._key_next:
            self._argue(json.dumps(word.strip("\"'"), ensure_ascii=False) + ":")
            self._buffer = self._buffer[end.end() :]
        else:
            self._argue(_scalar(word))
            self._buffer = self._buffer[end.start() :]
        self._key_next = False
        return True

    def _in_string(self) -> bool:
        end = self._buffer.find(self.quote)
        held = 0 if self._ended else undecided_length(self._buffer, (self.quote,))
        text = self._buffer[:end] if end >= 0 else self._buffer[: len(self._buffer) - held]
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1])
        if end < 0:
            self._buffer = self._buffer[len(text) :]
            return False
        self._argue('"' + (":" if self._key_next else ""))
        self._buffer = self._buffer[end + len(self.quote) :]
        if self._key_next:
            self._buffer = self._buffer.lstrip().removeprefix(":")
        self._key_next = False
        self._state = self._in_arguments
        return True


class FunctionGemmaParser(BraceCallParser):
    """FunctionGemma: `<start_function_call>call:name{...}<end_function_call>`, strings between `<escape>`."""

    opening = ("<start_function_call>",)
    closing = ("<end_function_call>", "<start_function_response>")
    quote = "<escape>"


class Gemma4Parser(BraceCallParser):
    """Gemma 4: `<|tool_call>call:name{...}<tool_call|>`, strings between `<|"|>`."""

    opening = ("<|tool_call>",)
    closing = ("<tool_call|>", "<|tool_response>")
    quote = '<|"|>'


class Gemma3Parser(BareJsonParser):
    """Gemma 3: functions called in Python, in a `tool_code` fence or a list, besides JSON.

    Python's arguments become JSON when the call is complete.
    """

    opening = ("```tool_code", *BareJsonParser.opening)
    binds_arguments = False  # Python's are none
    _in_fence = False

    def _at_start(self) -> bool:
        if not self._skip_space():
            return super()._at_start()
        name = re.match(r"\[\s*([\w.]+)\s*\(", self._buffer)
        if name and name[1] in self._tools:
            self._in_fence, self._state = False, self._in_code
            return True
        if self._buffer.startswith("[") and not self._ended and re.fullmatch(r"\[\s*[\w.]*\s*", self._buffer):
            return False
        return super()._at_start()

    def _opened(self, marker: str) -> Callable[[], bool]:
        self._in_fence = marker == "```tool_code"
        return self._in_code if self._in_fence else super()._opened(marker)

    def _in_code(self) -> bool:
        end = self._buffer.find("```") if self._in_fence else -1
        if end < 0 and not self._ended:
            return False
        code = self._buffer[: end if end >= 0 else None]
        calls = _python_calls(code.strip(), self._tools)
        if not calls:
            self._buffer = self._buffer[len(code) :]
            return self._fall_back(code)
        for name, arguments in calls:
            self._begin(name)
            self._argue(json.dumps(arguments, ensure_ascii=False))
        self._buffer = self._buffer[len(code) :].removeprefix("```")
        self._state = self._in_text
        return True


def _python_calls(code: str, tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The calls of known tools in a piece of Python, which is read and never run; none when anything else stands there."""
    try:
        statements = ast.parse(code).body
        expressions = [statement.value for statement in statements if isinstance(statement, (ast.Expr, ast.Assign))]
        listed = [entry for found in expressions for entry in (found.elts if isinstance(found, ast.List) else [found])]
        calls = [_python_call(entry, tools) for entry in listed]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return calls if len(expressions) == len(statements) else []


def _python_call(expression: ast.expr, tools: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id == "print" and expression.args:
        expression = expression.args[0]
    if not isinstance(expression, ast.Call):
        raise ValueError("no call")
    name = ast.unparse(expression.func)
    name = name if name in tools else name.rpartition(".")[2]
    if name not in tools:
        raise ValueError("no tool of that name")
    names = list(tools[name].get("properties") or {})
    arguments = dict(zip(names, map(ast.literal_eval, expression.args), strict=False))
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in expression.keywords}
    return name, json.loads(json.dumps(arguments))


def _scalar(word: str) -> str:
    try:
        return json.dumps(json.loads(word))
    except ValueError:
        return json.dumps(word, ensure_ascii=False)

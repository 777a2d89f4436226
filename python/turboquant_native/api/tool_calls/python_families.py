"""Families that call tools in Python, which is read and never run: Gemma 3 and OLMo 3.

Python's arguments become JSON when the call is complete.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .json_families import BareJsonParser
from .parser import CallParser

_WORDS = {"true": True, "false": False, "null": None}


class PythonCallParser(CallParser):
    """Reads the calls in a piece of Python."""

    binds_arguments = False  # Python's are no JSON

    def _take_code(self, closing: str | None) -> bool:
        """Takes the code before `closing`, None: before the answer's end, as calls, or as text where it is anything else."""
        end = self._buffer.find(closing) if closing else -1
        if end < 0 and not self._ended:
            return False
        code = self._buffer[: end if end >= 0 else None]
        self._buffer = self._buffer[len(code) :]
        calls = python_calls(code.strip(), self._tools)
        if not calls:
            return self._fall_back(code)
        for name, arguments in calls:
            self._begin(name)
            self._argue(json.dumps(arguments, ensure_ascii=False))
        self._state = self._in_text
        return True


class Gemma3Parser(PythonCallParser, BareJsonParser):
    """Gemma 3: in a `tool_code` fence or a list, besides JSON."""

    opening = ("```tool_code", *BareJsonParser.opening)
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
        taken = self._take_code("```" if self._in_fence else None)
        if taken and self._after_call:
            self._buffer = self._buffer.removeprefix("```")
        return taken


class Olmo3Parser(PythonCallParser):
    """OLMo 3: `<function_calls>` before calls, one a line, and `</function_calls>`."""

    opening = ("<function_calls>",)
    closing = ("</function_calls>",)

    def _opened(self, marker: str) -> Callable[[], bool]:
        return self._in_code

    def _in_code(self) -> bool:
        return self._take_code(self.closing[0])


def python_calls(code: str, tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
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
    arguments = dict(zip(names, map(_value, expression.args), strict=False))
    arguments |= {str(keyword.arg): _value(keyword.value) for keyword in expression.keywords}
    return name, json.loads(json.dumps(arguments))


class _JsonWords(ast.NodeTransformer):
    """Models also write true, false and null."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


def _value(expression: ast.expr) -> Any:
    return ast.literal_eval(_JsonWords().visit(expression))

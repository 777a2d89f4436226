"""Calls of tools that a request demands: what the answer must look like, and the call in it while it comes."""

import json
from collections.abc import Sequence
from typing import Any

from ..engine.grammar import LlamaGrammar

Function = dict[str, Any]


def demanded(tools: Sequence[dict[str, Any]] | None, tool_choice: Any) -> list[Function]:
    """The functions of which one must be called; none when the model may choose. ValueError names a choice that cannot be met."""
    if tool_choice in (None, "none", "auto"):
        return []
    functions = [_function(i, tool) for i, tool in enumerate(tools or ())]
    if tool_choice == "required":
        if not functions:
            raise ValueError("tool_choice='required' without tools")
        return list({function["name"]: function for function in functions}.values())
    if not isinstance(tool_choice, dict):
        raise ValueError(f"tool_choice={tool_choice!r} is not supported; give none, auto, required, or a tool by name")
    chosen = tool_choice.get("function")
    name = chosen.get("name") if isinstance(chosen, dict) else None
    found = [function for function in functions if function["name"] == name]
    if not found:
        raise ValueError(f"tool_choice names {name!r}, which is not among the tools")
    return found[:1]


def _function(index: int, tool: Any) -> Function:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"tool {index} is not {{'type': 'function', 'function': {{'name': ..., 'parameters': ...}}}}, got {tool!r:.200}")
    return function


class DemandedCall:
    """A call of one of these functions.

    Of a single one the answer is the bare arguments; of several it is {"name": ..., "arguments": ...}.

    Attributes:
        name: of the function, as soon as it is known.
    """

    def __init__(self, functions: Sequence[Function]) -> None:
        self._parameters = {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}
        self._openings = {name: f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ' for name in self._parameters}
        self.name = next(iter(self._parameters)) if len(self._parameters) == 1 else None
        self._wrapped = self.name is None
        self._held, self._arguments = "", ""

    def grammar(self) -> LlamaGrammar:
        """What the answer must look like."""
        if self.name is not None:
            return LlamaGrammar.from_json_schema(self._parameters[self.name])
        return LlamaGrammar.from_json_schemas({self._openings[name]: (schema, "}") for name, schema in self._parameters.items()})

    def push(self, text: str) -> str:
        """Takes the next piece of the answer; returns the arguments' text that is certain now."""
        if not self._wrapped:
            return text
        self._held += text
        if self.name is None:
            self.name = next((name for name, opening in self._openings.items() if self._held.startswith(opening)), None)
            if self.name is None:
                return ""
            self._held = self._held[len(self._openings[self.name]) :]
        piece, self._held = self._held[:-1], self._held[-1:]  # the last character may be the object's end
        self._arguments += piece
        return piece

    def finish(self) -> str:
        """The answer has ended, be it cut: the rest of the arguments."""
        return "" if not self._wrapped or self.name is None or self._is_whole() else self._held

    def _is_whole(self) -> bool:
        try:
            json.loads(self._arguments)
        except ValueError:
            return False
        return True

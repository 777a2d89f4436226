"""Calls of tools that a request demands."""

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


def grammar_of_calls(functions: Sequence[Function]) -> LlamaGrammar:
    """What an answer must look like: a single function's bare arguments, or {"name": ..., "arguments": ...} of one of several."""
    parameters = {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}
    if len(parameters) == 1:
        return LlamaGrammar.from_json_schema(next(iter(parameters.values())))
    openings = {name: f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ' for name in parameters}
    return LlamaGrammar.from_json_schemas({openings[name]: (schema, "}") for name, schema in parameters.items()})

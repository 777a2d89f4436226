"""Calls of tools in the markup of the model's family, read while they are written.

The chat template tells the family: it shows the model how earlier calls were written.
"""

from collections.abc import Mapping
from typing import Any

from .events import AnswerEvent, CallArguments, CallStart, ReasoningDelta, TextDelta
from .gemma_families import FunctionGemmaParser, Gemma4Parser
from .harmony_family import HarmonyParser
from .json_families import BareJsonParser, HermesParser, Llama3Parser, MistralParser
from .parser import CallParser, Channels, functions
from .python_families import Gemma3Parser, Olmo3Parser
from .xml_family import XmlParser

__all__ = [
    "AnswerEvent",
    "BareJsonParser",
    "CallArguments",
    "CallParser",
    "CallStart",
    "Channels",
    "ReasoningDelta",
    "TextDelta",
    "family_of",
    "functions",
]

# What a template contains, the most particular first.
_FAMILIES: tuple[tuple[str, type[CallParser]], ...] = (
    ("<|channel|>", HarmonyParser),
    ("<|tool_call>", Gemma4Parser),
    ("<start_function_call>", FunctionGemmaParser),
    ("<function_calls>", Olmo3Parser),
    ("<function=", XmlParser),
    ("[TOOL_CALLS]", MistralParser),
    ("<tool_call>", HermesParser),
    ("<|python_tag|>", Llama3Parser),
    ("<|start_header_id|>", Llama3Parser),
    ("<start_of_turn>", Gemma3Parser),
)


def family_of(template: str) -> type[CallParser]:
    """The parser for a chat template (jinja2 text); bare JSON where the template shows no markup."""
    return next((parser for mark, parser in _FAMILIES if mark in template), BareJsonParser)


def parse(text: str, template: str, tools: Mapping[str, Mapping[str, Any]]) -> list[AnswerEvent]:
    """The events of a whole answer."""
    parser = family_of(template)(tools)
    return parser.push(text) + parser.finish()

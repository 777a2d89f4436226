"""Families that call tools in JSON: Hermes and Qwen, Llama 3, Mistral, and models that were only told the form."""

from collections.abc import Callable, Mapping
from typing import Any

from .json_scanner import JsonValue
from .parser import JsonCallParser

_FENCES = ("```json", "```tool_call", "```")


class HermesParser(JsonCallParser):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3 and many others."""

    opening: tuple[str, ...] = ("<tool_call>",)
    closing: tuple[str, ...] = ("</tool_call>",)
    json_marker: str | None = "<tool_call>"

    def _opened(self, marker: str) -> Callable[[], bool]:
        return self._read_object()


class BareJsonParser(HermesParser):
    """Objects of a known tool's name at the answer's beginning or in a code fence; also Hermes' markup.

    For models whose template knows no markup of calls, and for answers that a grammar made.
    """

    opening = (*HermesParser.opening, *_FENCES)
    json_marker = None  # a call may also come without it

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._state = self._at_start

    def _at_start(self) -> bool:
        if not self._skip_space():
            return self._fall_back("") if self._ended else False
        self._state = self._read_object(only_known=True) if self._buffer.startswith("{") else self._text_at_start()
        return True

    def _text_at_start(self) -> Callable[[], bool]:
        self._space, self._marker = self._marker, ""
        return self._in_text

    def _opened(self, marker: str) -> Callable[[], bool]:
        return self._read_object(only_known=marker in _FENCES)

    def _after_object(self) -> bool:
        """Further objects follow behind a comma, a semicolon or a line break; a fence closes."""
        self._buffer = self._buffer.lstrip().lstrip(";,").lstrip()
        if self._buffer.startswith("```"):
            self._buffer = self._buffer[3:]
            return True
        if not self._buffer or self._waits_for("```"):
            self._buffer = "" if self._ended else self._buffer
            return False
        self._state = self._at_start
        return True


class Llama3Parser(BareJsonParser):
    """`{"name": ..., "parameters": {...}}` as the whole answer, or behind `<|python_tag|>`."""

    opening = ("<|python_tag|>", *BareJsonParser.opening)
    closing = (*BareJsonParser.closing, "<|eom_id|>")


class MistralParser(JsonCallParser):
    """`[TOOL_CALLS]` before a list of objects, or before each `name[ARGS]{...}` (also `name[CALL_ID]id[ARGS]{...}`, `name{...}`)."""

    opening = ("[TOOL_CALLS]",)

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._in_list = self._in_object_call = False
        self._arguments = JsonValue()

    def behind_name(self) -> tuple[str | None, bool]:
        return super().behind_name() if self._in_object_call else (self._arguments.text, False)

    @classmethod
    def marks(cls) -> tuple[str, ...]:
        return (*super().marks(), "[ARGS]", "[CALL_ID]")

    def _opened(self, marker: str) -> Callable[[], bool]:
        self._in_list = False
        return self._after_marker

    def _after_marker(self) -> bool:
        if not self._skip_space():
            return self._fall_back("") if self._ended else False
        if self._buffer.startswith("[") and not self._in_list:
            self._buffer, self._in_list = self._buffer[1:], True
            return True
        self._in_object_call = self._buffer.startswith("{")
        self._state = self._read_object() if self._in_object_call else self._in_name
        return True

    def _in_name(self) -> bool:
        end = self._buffer.find("{")
        head = self._buffer if end < 0 else self._buffer[:end]
        name = head.split("[")[0].strip()
        if not name or any(character in " \n\t\"'(" for character in name) or (self._ended and end < 0):
            raw, self._buffer = self._buffer, ""
            return self._fall_back(raw)
        if end < 0:
            return False
        self._begin(name)
        self._buffer, self._arguments = self._buffer[end:], JsonValue()
        self._state = self._in_arguments
        return True

    def _in_arguments(self) -> bool:
        count = 0
        while count < len(self._buffer) and not self._arguments.complete:
            self._arguments.feed(self._buffer[count])
            count += 1
        self._argue(self._buffer[:count])
        self._buffer = self._buffer[count:]
        if not self._arguments.complete:
            return False
        self._state = self._after_object
        return True

    def _after_object(self) -> bool:
        if not self._skip_space():
            return False
        if self._in_list and self._buffer[0] in ",]":
            self._state = self._after_marker if self._buffer[0] == "," else self._in_text
            self._buffer = self._buffer[1:].lstrip()
            return True
        self._state = self._in_text
        return True

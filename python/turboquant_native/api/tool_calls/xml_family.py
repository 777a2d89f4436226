"""Qwen3-Coder's calls: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ...engine.streaming import undecided_length
from .json_scanner import JsonValue
from .parser import CallParser

_FUNCTION, _PARAMETER = "<function=", "<parameter="
_END_PARAMETER, _END_FUNCTION, _END_CALL = "</parameter>", "</function>", "</tool_call>"
_ENDS = (_END_PARAMETER, _END_FUNCTION)
_ENDS_OF_STRING = (*_ENDS, "\n" + _END_PARAMETER, "\n" + _END_FUNCTION)


class XmlParser(CallParser):
    """Values stand as plain text; what the tool's schema calls a string is passed on while it is written, other types at their end."""

    opening = ("<tool_call>", _FUNCTION)
    closing = (_END_FUNCTION, _END_CALL)

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tools)
        self._name = self._key = ""
        self._keys = 0
        self._arguments = JsonValue()

    def _opened(self, marker: str) -> Callable[[], bool]:
        return self._in_name if marker == _FUNCTION else self._before_function

    def _before_function(self) -> bool:
        if not self._skip_space():
            return self._fall_back("") if self._ended else False
        if self._buffer.startswith(_FUNCTION):
            self._marker += _FUNCTION
            self._buffer = self._buffer[len(_FUNCTION) :]
            self._state = self._in_name
            return True
        return False if self._waits_for(_FUNCTION) else self._fall_back("")

    def _in_name(self) -> bool:
        end = self._buffer.find(">")
        name = self._buffer[: end if end >= 0 else None]
        if "\n" in name or "<" in name or (end < 0 and self._ended) or not (name or end < 0):
            raw, self._buffer = self._buffer, ""
            return self._fall_back(raw)
        if end < 0:
            return False
        self._name, self._keys = name.strip(), 0
        self._buffer = self._buffer[end + 1 :]
        self._begin(self._name)
        self._state = self._before_parameter
        return True

    def _before_parameter(self) -> bool:
        if not self._skip_space():
            return False
        if self._buffer.startswith("{") and not self._keys:  # Llama 3's custom form: the arguments as one object
            self._arguments = JsonValue()
            self._state = self._in_object
            return True
        if self._buffer.startswith(_PARAMETER):
            end = self._buffer.find(">")
            if end < 0:
                return False
            self._key = self._buffer[len(_PARAMETER) : end].strip()
            self._buffer = self._buffer[end + 1 :]
            self._argue(("{" if self._keys == 0 else ", ") + json.dumps(self._key, ensure_ascii=False) + ": ")
            self._keys += 1
            self._state = self._at_value
            return True
        if self._waits_for(_PARAMETER) or self._waits_for(_END_FUNCTION):
            return False
        self._argue("}" if self._keys else "{}")  # </function>, or a model that forgot it
        self._state = self._in_text
        return True

    def _in_object(self) -> bool:
        count = 0
        while count < len(self._buffer) and not self._arguments.complete:
            self._arguments.feed(self._buffer[count])
            count += 1
        self._argue(self._buffer[:count])
        self._buffer = self._buffer[count:]
        if self._arguments.complete:
            self._state = self._in_text
        return self._arguments.complete

    def _at_value(self) -> bool:
        """The line breaks around a value are markup."""
        if not self._buffer:
            return False
        self._buffer = self._buffer.removeprefix("\n")
        if self._is_string():
            self._argue('"')
            self._state = self._in_string
        else:
            self._state = self._in_other
        return True

    def _in_string(self) -> bool:
        end = self._end_of_value()
        text = self._buffer[:end].removesuffix("\n") if end >= 0 else self._buffer[: self._certain()]
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1])
        if end < 0:
            self._buffer = self._buffer[len(text) :]
            return False
        self._argue('"')
        return self._leave_value(end)

    def _in_other(self) -> bool:
        end = self._end_of_value()
        if end < 0:
            return False
        self._argue(_as_json(self._buffer[:end].strip()))
        return self._leave_value(end)

    def _leave_value(self, end: int) -> bool:
        self._buffer = self._buffer[end:].removeprefix(_END_PARAMETER)
        self._state = self._before_parameter
        return True

    def _end_of_value(self) -> int:
        ends = [position for tag in _ENDS if (position := self._buffer.find(tag)) >= 0]
        return min(ends, default=-1)

    def _certain(self) -> int:
        return len(self._buffer) - (0 if self._ended else undecided_length(self._buffer, _ENDS_OF_STRING))

    def _is_string(self) -> bool:
        properties = self._tools.get(self._name, {}).get("properties") or {}
        described = properties.get(self._key) if isinstance(properties, Mapping) else None
        return not isinstance(described, Mapping) or described.get("type", "string") == "string"


def _as_json(text: str) -> str:
    """A value that is no string, as JSON; what is none becomes a string."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        known = {"True": "true", "False": "false", "None": "null"}
        return known.get(text) or json.dumps(text, ensure_ascii=False)

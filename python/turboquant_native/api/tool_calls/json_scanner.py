"""JSON as it comes, character by character: where a value ends, and the name and arguments of a call."""

import json
from collections.abc import Callable

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters", "args")


class JsonValue:
    """Finds the end of one JSON value. It follows strings and brackets; what stands between them is the receiver's to judge."""

    def __init__(self) -> None:
        self.text = ""
        self.complete = False
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, character: str) -> bool:
        """Takes the next character; False when it no longer belongs to the value (a number has no end of its own)."""
        if not self.text and character in _SPACE:
            return True
        if self.text and self._scalar and character in ",}]" + _SPACE:
            self.complete = True
            return False
        self.text += character
        if self._in_string:
            self._string(character)
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.complete = self._depth <= 0
        return True

    @property
    def _scalar(self) -> bool:
        return self.text[0] not in '{["'

    def _string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            self.complete = self._depth == 0


class JsonCall:
    """Reads one {"name": "...", "arguments": {...}}, keys in any order, while it is written.

    Attributes:
        raw: what was read. name: the tool, once it is known. complete: the object is closed. broken: this is no call.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self._name_end = 0
        self.complete = self.broken = False
        self._key = ""
        self._value = JsonValue()
        self._arguments = ""
        self._seen_arguments = self._arguments_first = False
        self._phase: Callable[[str], bool] = self._open

    def feed(self, text: str) -> int:
        """Reads on; returns how many characters were its own."""
        count = 0
        while count < len(text) and not self.complete and not self.broken:
            if self._phase(text[count]):
                self.raw += text[count]
                count += 1
        return count

    @property
    def behind_name(self) -> str | None:
        """What stands behind the name so far; None where arguments stood before it."""
        return None if self._arguments_first else self.raw[self._name_end :]

    def take_arguments(self) -> str:
        """The text of the arguments that has come since the last call."""
        taken, self._arguments = self._arguments, ""
        return taken

    def _open(self, character: str) -> bool:
        return self._expect(character, {"{": self._before_key})

    def _before_key(self, character: str) -> bool:
        if character == '"':
            self._value = JsonValue()
            self._phase = self._in_key
            return False
        return self._expect(character, {"}": self._open, ",": self._before_key})

    def _in_key(self, character: str) -> bool:
        self._value.feed(character)
        if self._value.complete:
            self._key, self._phase = self._loaded_text(), self._before_colon
        return True

    def _before_colon(self, character: str) -> bool:
        self._value = JsonValue()
        return self._expect(character, {":": self._in_value})

    def _in_value(self, character: str) -> bool:
        taken = self._value.feed(character)
        streams = self._key in _ARGUMENTS and self._value.text.startswith("{")
        if streams and taken:
            self._arguments += character if len(self._value.text) > 1 else self._value.text
        if self._value.complete:
            self._end_of_value(streams)
            self._phase = self._before_key
        return taken

    def _end_of_value(self, streamed: bool) -> None:
        if self._key == "name":
            self.name = self._loaded_text() or None
            self._name_end = len(self.raw) + 1  # with the quote that is being read
            self.broken |= self.name is None
        elif self._key in _ARGUMENTS:
            self._seen_arguments = True
            self._arguments_first |= self.name is None
            if not streamed:
                self._arguments += self._whole_arguments()

    def _whole_arguments(self) -> str:
        """Arguments that are no object as such: an object written as a string, or nothing."""
        if self._value.text == "null":
            return "{}"
        text = self._loaded_text()
        self.broken |= not text.lstrip().startswith("{")
        return text

    def _loaded_text(self) -> str:
        try:
            loaded = json.loads(self._value.text, strict=False)
        except ValueError:
            loaded = None
        self.broken |= not isinstance(loaded, str)
        return loaded if isinstance(loaded, str) else ""

    def _expect(self, character: str, known: dict[str, Callable[[str], bool]]) -> bool:
        """Goes on by a character that may stand here; anything else but white space shows that this is no call."""
        if character in known:
            self._phase = known[character]
            if character == "}":
                self._end()
        elif character not in _SPACE:
            self.broken = True
        return not self.broken

    def _end(self) -> None:
        self.complete = True
        self.broken |= self.name is None
        if not self._seen_arguments:
            self._arguments += "{}"

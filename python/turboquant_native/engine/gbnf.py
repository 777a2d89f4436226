"""GBNF, the grammar notation of llama.cpp, translated for llguidance.

GBNF is context-free down to the character: `("ab" | "a") ("b" | "bc")` accepts four strings. llguidance reads Lark, whose terminals take as
much text as they can, and so would lose some of them. What is written as a terminal here is only what can be one without a loss
(gbnf_terminals.py). Names are our own: Lark reserves `start` and tells terminals from rules by their case.
"""

from collections.abc import Sequence
from string import hexdigits

from .gbnf_terminals import LAST, Alternatives, Grammar, Item, choose_terminals

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def to_lark(text: str) -> str:
    """The Lark grammar of a GBNF grammar. ValueError gives line and column of what cannot be read, or the rule that is missing."""
    try:
        grammar = _Reader(text).read()
    except RecursionError:
        raise ValueError("groups are nested too deeply") from None
    return _lark(grammar, choose_terminals(grammar))


def _lark(grammar: Grammar, terminals: set[str]) -> str:
    """Lark text; what terminals are made of is written once more in upper case, which makes it part of them."""

    def item(symbol: str, least: int, most: int | None, upper: bool) -> str:
        name = symbol.upper() if (upper or symbol in terminals) and symbol in grammar.rules else symbol
        plain = {(1, 1): "", (0, None): "*", (1, None): "+", (0, 1): "?"}
        return name + plain.get((least, most), f"{{{least},{'' if most is None else most}}}")

    def line(name: str, upper: bool) -> str:
        bodies = [" ".join(item(*part, upper) for part in sequence) or '""' for sequence in grammar.rules[name]]
        return f"{name.upper() if upper else name}: {' | '.join(bodies)}"

    inside = _closure(grammar, terminals)
    root = grammar.root.upper() if grammar.root in terminals else grammar.root
    lines = [f"start: {root}"]
    lines += [line(name, upper=False) for name in _outside(grammar, terminals)]
    lines += [line(name, upper=True) for name in inside]
    lines += [f"{name}: /{pattern}/" for name, pattern in grammar.patterns.items()]
    return "\n".join(lines) + "\n"


def _closure(grammar: Grammar, names: set[str]) -> list[str]:
    """Those rules and all that they are made of."""
    found = dict.fromkeys(sorted(names))
    waiting = list(found)
    while waiting:
        for symbol in grammar.symbols(waiting.pop()):
            if symbol in grammar.rules and symbol not in found:
                found[symbol] = None
                waiting.append(symbol)
    return list(found)


def _outside(grammar: Grammar, terminals: set[str]) -> list[str]:
    """Rules that the root reaches without going through a terminal."""
    found = dict.fromkeys(() if grammar.root in terminals else (grammar.root,))
    waiting = list(found)
    while waiting:
        for symbol in grammar.symbols(waiting.pop()):
            if symbol in grammar.rules and symbol not in found and symbol not in terminals:
                found[symbol] = None
                waiting.append(symbol)
    return list(found)


class _Reader:
    """Reads a grammar once, from left to right; groups, literals and repeated classes become rules, so that nothing is nested."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._names: dict[str, str] = {}  # theirs -> ours
        self._first_use: dict[str, int] = {}
        self._rules: dict[str, Alternatives] = {}
        self._classes: dict[tuple[bool, tuple[tuple[int, int], ...]], str] = {}

    def read(self) -> Grammar:
        self._space(newlines=True)
        while self._at < len(self._text):
            self._rule()
            self._space(newlines=True)
        missing = next((name for name in ["root", *self._names] if self._names.get(name) not in self._rules), None)
        if missing is not None:
            raise self._error(f"the rule {missing!r} is not defined", self._first_use.get(missing, len(self._text)))
        return Grammar(self._names["root"], self._rules, {name: key for key, name in self._classes.items()})

    # --- characters

    def _error(self, problem: str, at: int | None = None) -> ValueError:
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at) + 1
        return ValueError(f"{problem} (line {line}, column {at - self._text.rfind(chr(10), 0, at)})")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> None:
        if not self._text.startswith(expected, self._at):
            found = repr(self._peek()) if self._peek() else "the end"
            raise self._error(f"expected {expected!r}, found {found}")
        self._at += len(expected)

    def _space(self, newlines: bool) -> None:
        """Skips white space and comments."""
        while character := self._peek():
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character in (" \t\r\n" if newlines else " \t"):
                self._at += 1
            else:
                return

    def _word(self) -> str:
        start = self._at
        while self._peek() and self._peek() in _WORD:
            self._at += 1
        if start == self._at:
            raise self._error(f"expected the name of a rule, found {self._peek()!r}" if self._peek() else "expected the name of a rule")
        return self._text[start : self._at]

    def _number(self) -> int:
        start = self._at
        while self._peek().isdecimal():
            self._at += 1
        if start == self._at:
            raise self._error("expected a number")
        return int(self._text[start : self._at])

    def _character(self) -> str:
        """One character of a literal or class, escaped or not."""
        character = self._peek()
        self._at += 1
        if not character:
            raise self._error("the grammar ends within a literal or a character class", self._at - 1)
        if character != "\\":
            return character
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        hexadecimal = len(digits) == _HEX_DIGITS.get(kind) and all(digit in hexdigits for digit in digits)
        if not hexadecimal or int(digits, 16) > LAST or 0xD800 <= int(digits, 16) < 0xE000:
            raise self._error(f"unknown escape \\{kind}{digits}", self._at - 2)
        self._at += len(digits)
        return chr(int(digits, 16))

    # --- rules

    def _name(self) -> str:
        start = self._at
        theirs = self._word()
        self._first_use.setdefault(theirs, start)
        return self._names.setdefault(theirs, f"r{len(self._names)}")

    def _rule(self) -> None:
        name = self._name()
        self._space(newlines=False)
        self._take("::=")
        self._space(newlines=True)
        self._rules[name] = self._alternatives(nested=False)  # of two rules of a name the later holds, as in llama.cpp
        if self._peek() and self._peek() not in "\r\n":
            raise self._error(f"unexpected {self._peek()!r}")

    def _alternatives(self, nested: bool) -> Alternatives:
        found = [self._sequence(nested)]
        while self._at_bar():
            self._at += 1
            self._space(newlines=True)
            found.append(self._sequence(nested))
        return found

    def _at_bar(self) -> bool:
        """Whether another alternative follows, be it on the next line."""
        before = self._at
        self._space(newlines=True)
        if self._peek() == "|":
            return True
        self._at = before
        return False

    def _sequence(self, nested: bool) -> list[Item]:
        items: list[Item] = []
        self._space(newlines=nested)
        while (symbol := self._symbol()) is not None:
            self._space(newlines=nested)
            while self._peek() and self._peek() in "*+?{":
                least, most = self._repetition()
                symbol = self._group([[(symbol, least, most)] if most != 0 else []])
                self._space(newlines=nested)
            items.append((symbol, 1, 1))
        return items

    def _symbol(self) -> str | None:
        """The name of what comes next: a rule, a class of characters, or a control token."""
        character = self._peek()
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == "(":
            return self._parenthesis()
        if character == "<":
            return self._token()
        if character == ".":
            self._at += 1
            return self._characters([], negated=True)
        if character == "!":
            raise self._error("a token that must not come (!<...>) is not supported")
        return self._name() if character and character in _WORD else None

    def _literal(self) -> str:
        self._at += 1
        found: list[Item] = []
        while self._peek() != '"':
            code = ord(self._character())
            found.append((self._characters([(code, code)]), 1, 1))
        self._at += 1
        return self._group([found])

    def _class(self) -> str:
        start = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            first = last = ord(self._character())
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = ord(self._character())
            if last < first:
                raise self._error("a range of characters whose end comes before its start", start)
            ranges.append((first, last))
        self._at += 1
        if not ranges and not negated:
            raise self._error("an empty character class", start)
        return self._characters(ranges, negated)

    def _characters(self, ranges: Sequence[tuple[int, int]], negated: bool = False) -> str:
        return self._classes.setdefault((negated, tuple(ranges)), f"C{len(self._classes)}")

    def _parenthesis(self) -> str:
        self._at += 1
        self._space(newlines=True)
        alternatives = self._alternatives(nested=True)
        self._space(newlines=True)
        self._take(")")
        return self._group(alternatives)

    def _group(self, alternatives: Alternatives) -> str:
        """A rule of its own for what stands together; what is one symbol already needs none."""
        if len(alternatives) == 1 and len(alternatives[0]) == 1 and alternatives[0][0][1:] == (1, 1):
            return alternatives[0][0][0]
        name = f"g{len(self._rules)}"
        self._rules[name] = alternatives
        return name

    def _token(self) -> str:
        end = self._text.find(">", self._at)
        token = self._text[self._at : end + 1]
        if end < 0 or any(character.isspace() for character in token):
            raise self._error("expected a control token such as <|im_end|> or <[123]>")
        self._at = end + 1
        return token

    def _repetition(self) -> tuple[int, int | None]:
        """Least and most of `*`, `+`, `?`, {m}, {m,}, {m,n}."""
        mark = self._peek()
        self._at += 1
        if mark != "{":
            return (int(mark == "+"), 1 if mark == "?" else None)
        start = self._at
        self._space(newlines=True)
        least = self._number()
        self._space(newlines=True)
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._space(newlines=True)
            most = self._number() if self._peek().isdecimal() else None
            self._space(newlines=True)
        self._take("}")
        if most is not None and most < least:
            raise self._error(f"a repetition of at least {least} and at most {most}", start)
        return least, most

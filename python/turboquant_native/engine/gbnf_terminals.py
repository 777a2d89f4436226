"""Which parts of a context-free grammar may be terminals: pieces of text that a lexer takes whole, as long as they can be.

A grammar of single characters loses nothing, but a lexer on long terminals is many times faster. A rule can be a terminal A without loss
when it is not recursive, and when taking as much text as possible is never wrong: no terminal B may go on with a character c where a
complete A has been read and c may also follow A. Where one may, B is taken apart, until nothing of the kind is left.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Item = tuple[str, int, int | None]  # a symbol, and how often it comes at least and at most (None: any number)
Alternatives = list[list[Item]]
Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
_MAX_POSITIONS = 256  # of one terminal; more would make the comparison of pairs slow
_MAX_STEPS = 1 << 20  # of all comparisons of one grammar


@dataclass(frozen=True)
class Grammar:
    """A context-free grammar over characters.

    Attributes:
        root: the rule that text must match.
        rules: name -> alternatives; a symbol is the name of a rule, of a class, or a control token in angle brackets.
        classes: name -> (negated, ranges of code points, both ends included).
    """

    root: str
    rules: dict[str, Alternatives]
    classes: dict[str, tuple[bool, Ranges]]

    def symbols(self, rule: str) -> Iterator[str]:
        return (symbol for sequence in self.rules[rule] for symbol, _, _ in sequence)

    @property
    def patterns(self) -> dict[str, str]:
        """Each class as a regular expression."""
        return {name: _pattern(negated, ranges) for name, (negated, ranges) in self.classes.items()}


def _pattern(negated: bool, ranges: Ranges) -> str:
    if not ranges:  # every character
        negated, ranges = False, ((0, LAST),)
    parts = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in ranges)
    return f"[{'^' if negated else ''}{parts}]"


class _TooLargeError(Exception):
    """A comparison that would take too long."""


def choose_terminals(grammar: Grammar) -> set[str]:
    """Names of rules to write as terminals; none where the grammar is too large to decide."""
    finite = _finite(grammar)
    if grammar.root in finite:  # nothing follows, nothing stands beside it: one regular expression
        return {grammar.root}
    try:
        return _Chooser(grammar, finite).choose()
    except _TooLargeError:
        return set()


def _finite(grammar: Grammar) -> set[str]:
    """Rules that neither are recursive nor use a recursive rule or a control token."""
    users: dict[str, list[str]] = {name: [] for name in grammar.rules}
    open_parts: dict[str, int] = {}
    for name in grammar.rules:
        parts = set(grammar.symbols(name)) - grammar.classes.keys()
        open_parts[name] = len(parts)
        for part in parts & grammar.rules.keys():
            users[part].append(name)
    done = [name for name, count in open_parts.items() if count == 0]
    for name in done:  # grows
        for user in users[name]:
            open_parts[user] -= 1
            if open_parts[user] == 0:
                done.append(user)
    return set(done)


@dataclass
class _Automaton:
    """Glushkov's: a position is one occurrence of a class. Sets of positions and of characters are bits of an int."""

    nullable: bool = False
    first: int = 0
    last: int = 0
    characters: list[int] = field(default_factory=list)  # of each position
    follow: list[int] = field(default_factory=list)  # positions after each position

    def first_characters(self) -> int:
        return self.union(self.first)

    def union(self, positions: int) -> int:
        found = 0
        for i in _bits(positions):
            found |= self.characters[i]
        return found


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _alphabet(classes: dict[str, tuple[bool, Ranges]]) -> dict[str, int]:
    """Each class as a set of bits; a bit is a run of characters that no class tells apart."""
    starts = sorted({0, *(edge for _, ranges in classes.values() for first, last in ranges for edge in (first, last + 1))})
    everything = (1 << len(starts)) - 1
    found = {}
    for name, (negated, ranges) in classes.items():
        bits = 0
        for first, last in ranges:
            bits |= (1 << bisect_left(starts, last + 1)) - (1 << bisect_left(starts, first))
        found[name] = everything & ~bits if negated else bits
    return found


class _Chooser:
    def __init__(self, grammar: Grammar, finite: set[str]) -> None:
        self._grammar, self._finite = grammar, finite
        self._characters = _alphabet(grammar.classes)
        self._automata: dict[str, _Automaton] = {}
        self._beyond: dict[tuple[str, str], int] = {}
        self._steps = 0

    def choose(self) -> set[str]:
        rules = set(self._grammar.rules) - self._finite  # what stays a rule
        while True:
            terminals = {symbol for rule in rules for symbol in self._grammar.symbols(rule) if symbol not in rules and symbol[0] != "<"}
            broken = {name for name in terminals - self._characters.keys() if self._automaton(name) is None}
            follow = self._follow(rules, terminals - broken) if not broken else {}
            multi = terminals - self._characters.keys()
            for a in terminals if not broken else ():
                broken |= {b for b in multi if self._goes_on(a, b) & follow[a]}
            if not broken:
                return multi
            rules |= broken

    # --- what one terminal looks like

    def _automaton(self, name: str) -> _Automaton | None:
        """None for a terminal that is too large."""
        if name not in self._automata:
            automaton = _Automaton()
            try:
                automaton.nullable, automaton.first, automaton.last = self._build(automaton, name)
            except _TooLargeError:
                return None
            self._automata[name] = automaton
        return self._automata[name]

    def _build(self, to: _Automaton, symbol: str) -> tuple[bool, int, int]:
        """Adds a symbol's positions; whether it may be empty, its first and its last positions."""
        if symbol in self._characters:
            if len(to.characters) >= _MAX_POSITIONS:
                raise _TooLargeError
            to.characters.append(self._characters[symbol])
            to.follow.append(0)
            place = 1 << (len(to.characters) - 1)
            return False, place, place
        nullable, first, last = False, 0, 0
        for sequence in self._grammar.rules[symbol]:
            empty, starts, ends = self._build_sequence(to, sequence)
            nullable, first, last = nullable or empty, first | starts, last | ends
        return nullable, first, last

    def _build_sequence(self, to: _Automaton, sequence: list[Item]) -> tuple[bool, int, int]:
        nullable, first, last = True, 0, 0
        for symbol, least, most in sequence:
            copies = max(least, 1) if most is None else most
            if copies > _MAX_POSITIONS:
                raise _TooLargeError
            for copy in range(copies):
                empty, starts, ends = self._build(to, symbol)
                if most is None:
                    self._connect(to, ends, starts)
                empty = empty or copy >= least
                self._connect(to, last, starts)
                first |= starts if nullable else 0
                last = ends | (last if empty else 0)
                nullable = nullable and empty
        return nullable, first, last

    @staticmethod
    def _connect(to: _Automaton, ends: int, starts: int) -> None:
        for i in _bits(ends):
            to.follow[i] |= starts

    def _goes_on(self, a: str, b: str) -> int:
        """Characters with which terminal b may go on where a complete, nonempty a has been read as the beginning of b."""
        if (a, b) not in self._beyond:
            left, right = self._automaton(a), self._automaton(b)
            assert left is not None and right is not None
            self._beyond[a, b] = self._compare(left, right)
        return self._beyond[a, b]

    def _compare(self, left: _Automaton, right: _Automaton) -> int:
        reached = [0] * len(left.characters)  # positions of `right` that the same text may lead to
        waiting = [(i, right.first) for i in _bits(left.first)]
        found = 0
        while waiting:
            i, candidates = waiting.pop()
            new = 0
            for j in _bits(candidates & ~reached[i]):
                self._steps += 1
                if left.characters[i] & right.characters[j]:
                    new |= 1 << j
            if self._steps > _MAX_STEPS:
                raise _TooLargeError
            if not new:
                continue
            reached[i] |= new
            after = 0
            for j in _bits(new):
                after |= right.follow[j]
            if left.last >> i & 1:
                found |= right.union(after)
            waiting += [(k, after) for k in _bits(left.follow[i])]
        return found

    # --- what may follow a terminal

    def _follow(self, rules: set[str], terminals: Iterable[str]) -> dict[str, int]:
        """Characters that may follow each symbol, by the usual fixed point."""
        empty: dict[str, bool] = dict.fromkeys(rules, False)
        first: dict[str, int] = dict.fromkeys(rules, 0)
        for name in terminals:
            automaton = self._automaton(name)
            assert automaton is not None
            empty[name], first[name] = automaton.nullable, automaton.first_characters()
        follow = dict.fromkeys(first, 0)
        sequences = [(rule, sequence) for rule in rules for sequence in self._grammar.rules[rule]]
        changed = True
        while changed:
            changed = False
            for rule, sequence in sequences:
                changed |= self._starts(rule, sequence, empty, first)
                changed |= self._ends(rule, sequence, empty, first, follow)
        return follow

    @staticmethod
    def _starts(rule: str, sequence: list[Item], empty: dict[str, bool], first: dict[str, int]) -> bool:
        before = empty[rule], first[rule]
        for symbol, least, _ in sequence:
            first[rule] |= first.get(symbol, 0)  # a control token is no character
            if least and not empty.get(symbol, False):
                break
        else:
            empty[rule] = True
        return before != (empty[rule], first[rule])

    @staticmethod
    def _ends(rule: str, sequence: list[Item], empty: dict[str, bool], first: dict[str, int], follow: dict[str, int]) -> bool:
        changed, after = False, follow[rule]
        for symbol, least, most in reversed(sequence):
            if symbol in follow:
                more = follow[symbol] | after | (0 if most == 1 else first[symbol])
                changed |= more != follow[symbol]
                follow[symbol] = more
            starts = first.get(symbol, 0)
            after = starts | (after if not least or empty.get(symbol, False) else 0)
        return changed

"""Constrained output: GBNF, Lark, regular expressions and JSON schemas, through llguidance (extra `[grammar]`)."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_schema as json_schemas
from .gbnf import to_lark
from .grammar_tokens import grammar_tokenizer
from .vocabulary import Vocabulary

Logits = NDArray[np.float32]
Frame = str | re.Pattern[str]

# Unbounded white space would let a model write it for ever.
JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"\n? {0,16}", "coerce_one_of": True, "lenient": True}
_MAX_CHAIN = 1000  # llguidance's stack overflows, and the process with it, where rules refer to each other thousands deep
# Grammars whose terminals have to be short need more than the library's 50,000.
_MAX_ITEMS = 1 << 20
_OPAQUE = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')  # of a Lark grammar: strings, expressions, comments
_HEAD = re.compile(r"^[?!]?(\w+)[^:\n|]*:", re.MULTILINE)
_TOKEN = re.compile(r"<[^\s\[\]>]+>")  # by name; only in Lark text made of GBNF, where all other text is escaped
_NAME = re.compile(r"\w+")


def _brief(problem: str) -> str:
    """The first line of an error of llguidance, which goes on with a dump of the grammar."""
    if "panic" in problem or "out of memory" in problem:
        return "it is too large"
    return problem.strip().splitlines()[0][:400] if problem.strip() else "unknown error"


def check_chains(lark: str) -> None:
    """Refuses rules that refer to each other too deep: the library follows them by recursion, and its stack is not bounded."""
    text = _OPAQUE.sub(" ", lark)
    heads = list(_HEAD.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    bodies = {head[1]: text[head.end() : end] for head, end in zip(heads, ends, strict=True)}
    seen = {"start"}
    stack = [iter(_NAME.findall(bodies.get("start", "")))]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
        elif name in bodies and name not in seen:
            seen.add(name)
            stack.append(iter(_NAME.findall(bodies[name])))
            if len(stack) > _MAX_CHAIN:
                raise ValueError(f"the grammar cannot be used: its rules refer to each other more than {_MAX_CHAIN} deep")


def _with_ids(lark: str, vocabulary: Vocabulary) -> str:
    """A grammar that gives tokens by their ids: by name the library knows only those that are special."""

    def numbered(found: "re.Match[str]") -> str:
        token = vocabulary.id_of(found[0])
        if not 0 <= token < vocabulary.n_vocab:
            raise ValueError(f"the grammar names {found[0]}, which is no token of this model")
        return f"<[{token}]>"

    return str(_llguidance().LLMatcher.grammar_from_lark(_TOKEN.sub(numbered, lark)))


def _is_regex(pattern: str) -> bool:
    matcher = _llguidance().LLMatcher
    return not matcher.validate_grammar_with_warnings(matcher.grammar_from_regex(pattern))[0]


def _of_schema(schema: str | dict[str, Any]) -> tuple[str, list[str]]:
    prepared, left_out = json_schemas.prepare(schema, _is_regex)
    return _llguidance().LLMatcher.grammar_from_json_schema(json.dumps(prepared), defaults=JSON_OPTIONS), left_out


def _lark(frame: Frame) -> str:
    return json.dumps(frame) if isinstance(frame, str) else f"/{frame.pattern}/"


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError("constrained output needs llguidance: pip install 'turboquant-native[grammar]'") from error
    return llguidance


class LlamaGrammar:
    """What generated text must look like; immutable, for any number of calls. ValueError where a grammar cannot be understood.

    Attributes:
        relaxed: what of a schema it does not constrain, a sentence each.
    """

    def __init__(self, compiled: str, left_out: Sequence[str] | None = None) -> None:
        """compiled: a grammar in llguidance's own form; use the `from_` methods. left_out: of a schema, what it does not constrain."""
        failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(compiled)
        if failed:
            raise ValueError(f"the grammar cannot be used: {_brief(' '.join(messages))}")
        found = (*left_out, *messages) if left_out is not None else ()
        self.relaxed = [message for message in found if not message.startswith("oneOf")]  # which is anyOf, as documented
        for message in self.relaxed:
            warnings.warn(f"the JSON schema is not followed in all: {message}", stacklevel=3)
        self._compiled = compiled
        self._gbnf: str | None = None  # Lark text made of GBNF, where it names tokens

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> "LlamaGrammar":
        """GBNF as llama.cpp reads it (rules `name ::= ...`, from `root`), or Lark (rules `name: ...`, from `start`).

        Quoted text is text, also where it is the name of a control token; `<name>` outside quotes is that token.
        """
        if "::=" not in grammar:
            return cls.from_lark(grammar)
        _llguidance()
        try:
            lark = to_lark(grammar)
        except ValueError as error:
            raise ValueError(f"the GBNF grammar cannot be read: {error}") from error
        compiled = cls.from_lark(lark)
        compiled._gbnf = lark if _TOKEN.search(lark) else None
        return compiled

    @classmethod
    def from_file(cls, file: str | Path, verbose: bool = True) -> "LlamaGrammar":
        """`from_string` on a file."""
        return cls.from_string(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str | dict[str, Any], verbose: bool = True) -> "LlamaGrammar":
        """JSON that a schema accepts; the schema as text or as a dict. `{}` accepts any JSON.

        As llama.cpp reads schemas, an object that lists properties has no others unless the schema says so. What cannot be constrained
        (such as "uniqueItems") is left out, with a warning that names it; "oneOf" is "anyOf".
        """
        return cls(*_of_schema(json_schema))

    @classmethod
    def from_json_schemas(cls, frames: Mapping[Frame, tuple[dict[str, Any], Frame]]) -> "LlamaGrammar":
        """One of several schemas, each between texts or expressions (Rust's syntax): {before: (schema, after)}."""
        parts, left_out = [], []
        for before, (schema, after) in frames.items():
            prepared, relaxed = json_schemas.prepare(schema, _is_regex)
            with_options = {"x-guidance": JSON_OPTIONS, **(prepared if isinstance(prepared, dict) else {"anyOf": [prepared]})}
            parts.append(f"{_lark(before)} %json {json.dumps(with_options)} {_lark(after)}")
            left_out += relaxed
        rules = "".join(f"part{i}: {part}\n" for i, part in enumerate(parts))
        lark = f"start: {' | '.join(f'part{i}' for i in range(len(parts)))}\n{rules}"
        return cls(_llguidance().LLMatcher.grammar_from_lark(lark), left_out)

    @classmethod
    def from_regex(cls, regex: str) -> "LlamaGrammar":
        """Text that a regular expression (Rust's syntax) matches as a whole."""
        return cls(_llguidance().LLMatcher.grammar_from_regex(regex))

    @classmethod
    def from_lark(cls, lark: str) -> "LlamaGrammar":
        """A Lark grammar. Quoted text is text, also where it is the name of a control token; `<name>` outside quotes is that token."""
        check_chains(lark)
        return cls(_llguidance().LLMatcher.grammar_from_lark(lark))

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> "GrammarProcessor":
        """A logits processor for one completion whose prompt has n_prompt tokens."""
        compiled = self._compiled if self._gbnf is None else _with_ids(self._gbnf, vocabulary)
        return GrammarProcessor(compiled, vocabulary, n_prompt)


class GrammarProcessor:
    """Takes away every token that the grammar does not allow next."""

    def __init__(self, compiled: str, vocabulary: Vocabulary, n_prompt: int) -> None:
        self._matcher = _llguidance().LLMatcher(
            grammar_tokenizer(vocabulary), compiled, log_level=0, limits=_llguidance().LLParserLimits(step_max_items=_MAX_ITEMS)
        )
        self._seen = n_prompt
        self._check()

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> Logits:
        if len(input_ids) > self._seen:
            self._matcher.consume_tokens(input_ids[self._seen :].tolist())
            self._seen = len(input_ids)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        logits[~allowed] = -np.inf
        return logits

    def skip(self, tokens: Sequence[int]) -> bool:
        """Takes tokens that stand already at its beginning; False where the grammar does not allow them."""
        return len(tokens) == 0 or bool(self._matcher.consume_tokens(list(tokens)))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the grammar failed: {_brief(self._matcher.get_error())}")

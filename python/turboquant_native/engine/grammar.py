"""Constrained output: GBNF, Lark, regular expressions and JSON schemas, through llguidance (extra `[grammar]`)."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary

Logits = NDArray[np.float32]


# Unbounded white space would let a model write it for ever.
_JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"\n? {0,16}"}


_NAMED_SCHEMAS = {"properties", "$defs", "definitions"}  # objects whose keys are names, not keywords
_NO_SCHEMAS = {"allOf", "enum", "const", "default", "examples", "required"}


def _closed(schema: Any) -> Any:
    """A schema whose objects have only the properties that they list; parts of an allOf stay open, because they add up."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_part(key, part) for key, part in schema.items()}
    open_keys = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf"}
    if isinstance(schema.get("properties"), dict) and not open_keys & schema.keys():
        closed["additionalProperties"] = False
    return closed


def _closed_part(key: str, part: Any) -> Any:
    if key in _NAMED_SCHEMAS and isinstance(part, dict):
        return {name: _closed(named) for name, named in part.items()}
    return part if key in _NO_SCHEMAS else _closed(part)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError("constrained output needs llguidance: pip install 'turboquant-native[grammar]'") from error
    return llguidance


class LlamaGrammar:
    """What generated text must look like; immutable, for any number of calls. ValueError where a grammar cannot be understood."""

    def __init__(self, compiled: str) -> None:
        """compiled: a grammar in llguidance's own form; use the `from_` methods."""
        problem = _llguidance().LLMatcher.validate_grammar(compiled)
        if problem and not problem.startswith("WARNING"):
            raise ValueError(f"the grammar cannot be used: {problem.strip()}")
        self._compiled = compiled

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> "LlamaGrammar":
        """GBNF as llama.cpp reads it (rules `name ::= ...`, from `root`), or Lark (rules `name: ...`, from `start`)."""
        if "::=" not in grammar:
            return cls.from_lark(grammar)
        _llguidance()
        from llguidance.gbnf_to_lark import gbnf_to_lark

        try:
            return cls.from_lark(gbnf_to_lark(grammar))
        except Exception as error:  # the library's own error derives from Exception
            raise ValueError(f"the GBNF grammar cannot be read: {error}") from error

    @classmethod
    def from_file(cls, file: str | Path, verbose: bool = True) -> "LlamaGrammar":
        """`from_string` on a file."""
        return cls.from_string(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str | dict[str, Any], verbose: bool = True) -> "LlamaGrammar":
        """JSON that a schema accepts; the schema as text or as a dict. `{}` accepts any JSON.

        As llama.cpp reads schemas, an object that lists properties has no others unless the schema says so.
        """
        schema = _closed(json.loads(json_schema) if isinstance(json_schema, str) else json_schema)
        return cls(_llguidance().LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_JSON_OPTIONS))

    @classmethod
    def from_regex(cls, regex: str) -> "LlamaGrammar":
        """Text that a regular expression (Rust's syntax) matches as a whole."""
        return cls(_llguidance().LLMatcher.grammar_from_regex(regex))

    @classmethod
    def from_lark(cls, lark: str) -> "LlamaGrammar":
        """A Lark grammar."""
        return cls(_llguidance().LLMatcher.grammar_from_lark(lark))

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> Callable[[NDArray[np.intc], Logits], Logits]:
        """A logits processor for one completion whose prompt has n_prompt tokens."""
        return _GrammarProcessor(self._compiled, vocabulary, n_prompt)


@lru_cache(maxsize=4)
def _tokenizer(tokenizer_json: str, n_vocab: int, end_tokens: tuple[int, ...]) -> Any:
    """llguidance's view of a tokenizer; building it takes a tenth of a second. `Vocabulary` sees to it that it has no more
    tokens than the model."""
    return _llguidance().LLTokenizer(tokenizer_json, n_vocab=n_vocab, eos_token=list(end_tokens))


class _GrammarProcessor:
    """Takes away every token that the grammar does not allow next."""

    def __init__(self, compiled: str, vocabulary: Vocabulary, n_prompt: int) -> None:
        tokenizer = _tokenizer(vocabulary.json, vocabulary.n_vocab, tuple(sorted(vocabulary.end_tokens)))
        self._matcher = _llguidance().LLMatcher(tokenizer, compiled, log_level=0)
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

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the grammar failed: {self._matcher.get_error().strip()}")

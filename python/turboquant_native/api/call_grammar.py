"""Strict tools whose call is the model's own choice: a grammar binds each call and leaves everything else free."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.grammar import GrammarProcessor, LlamaGrammar
from ..engine.sampling import Logits, LogitsProcessor
from ..engine.vocabulary import Vocabulary
from .tool_calls import CallParser, CallStart
from .tool_calls.watching import TextOfTokens
from .tool_choice import Function

_KEY = re.compile(r'[ \t\r\n]{0,16},[ \t\r\n]{0,16}"(arguments|parameters)"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}')
_END = re.compile(r"[ \t\r\n]{0,16}\}")


class UnboundCall(RuntimeError):
    """The model began a strict tool's call in a form whose arguments no grammar can bind any more."""


class WithinCalls:
    """Binds what follows the marker of a call to one of these functions, in Hermes' form. Those that are not strict may get any arguments.

    Args:
        marker: the text that begins a call.
    """

    def __init__(self, functions: Sequence[Function], marker: str) -> None:
        self._marker = marker
        self._grammar = LlamaGrammar.from_json_schemas({_opening(function): (_schema(function), "}") for function in functions})

    @property
    def relaxed(self) -> list[str]:
        """What of the schemas is not constrained."""
        return self._grammar.relaxed

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> LogitsProcessor:
        """A logits processor for one completion whose prompt has n_prompt tokens."""
        self._grammar.processor(vocabulary, n_prompt)  # an unusable grammar is an error at once
        end, marker = b"", self._marker.encode()

        def look(tokens: NDArray[np.intc], n_tokens: int) -> GrammarProcessor | None:
            nonlocal end
            for token in tokens:
                end = (end + vocabulary.piece(int(token)))[-4 * len(marker) :]
            return self._grammar.processor(vocabulary, n_tokens) if end.endswith(marker) else None

        return _Watching(look, vocabulary, n_prompt)


class WithinArguments:
    """Binds the arguments of strict functions from where a call has named one, for families whose calls no marker shows.

    Args:
        functions: all that may be called. family: reads the calls; one that `binds_arguments`.
        shown_tokens: control tokens that are part of the text.
    """

    def __init__(self, functions: Sequence[Function], family: type[CallParser], shown_tokens: frozenset[int]) -> None:
        self._family, self._shown = family, shown_tokens
        self._tools = {str(function["name"]): _schema(function) for function in functions}
        strict = [function for function in functions if function.get("strict")]
        self._grammars = {
            (str(function["name"]), keyed): LlamaGrammar.from_json_schemas({_KEY: (_schema(function), _END)})
            if keyed
            else LlamaGrammar.from_json_schema(_schema(function))
            for function in strict
            for keyed in (True, False)
        }

    @property
    def relaxed(self) -> list[str]:
        """What of the schemas is not constrained."""
        return [text for (_, keyed), grammar in self._grammars.items() if keyed for text in grammar.relaxed]

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> LogitsProcessor:
        """A logits processor for one completion whose prompt has n_prompt tokens. It raises UnboundCall."""
        for grammar in self._grammars.values():
            grammar.processor(vocabulary, n_prompt)
        parser, text = self._family(self._tools), TextOfTokens(vocabulary, self._shown)

        def look(tokens: NDArray[np.intc], n_tokens: int) -> GrammarProcessor | None:
            started = [event for event in parser.push(text.push(tokens)) if isinstance(event, CallStart)]
            if not started:
                return None
            behind, keyed = parser.behind_name()
            grammar = self._grammars.get((started[-1].name, keyed))
            if grammar is None:
                return None
            bound = grammar.processor(vocabulary, n_tokens)
            if behind is None or not bound.skip(vocabulary.encode(behind)):
                raise UnboundCall(f"the model began a call of the strict tool {started[-1].name!r} in a form that its schema cannot bind")
            return bound

        return _Watching(look, vocabulary, n_prompt)


def _opening(function: Function) -> str:
    return f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '


def _schema(function: Function) -> dict[str, Any]:
    given = function.get("parameters") if function.get("strict") else None
    return given or {"type": "object"}


class _Watching:
    """Has `look` read the tokens as they come until it gives a grammar, which binds until its text is complete; then again."""

    def __init__(self, look: Callable[[NDArray[np.intc], int], GrammarProcessor | None], vocabulary: Vocabulary, n_prompt: int) -> None:
        self._look, self._ends, self._seen = look, sorted(vocabulary.end_tokens), n_prompt
        self._bound: GrammarProcessor | None = None

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> Logits:
        found = self._look(input_ids[self._seen :], len(input_ids))
        self._seen = len(input_ids)
        self._bound = self._bound or found
        if self._bound is None:
            return logits
        allowed = np.isfinite(self._bound(input_ids, np.zeros_like(logits)))
        goes_on = allowed.copy()
        goes_on[self._ends] = False
        if goes_on.any():
            logits[~allowed] = -np.inf
        else:
            self._bound = None  # nothing but the end may follow: the object is complete
        return logits

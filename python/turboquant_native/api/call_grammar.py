"""Strict tools whose call is the model's own choice: a grammar binds each call and leaves everything else free."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.grammar import LlamaGrammar
from ..engine.sampling import Logits, LogitsProcessor
from ..engine.vocabulary import Vocabulary
from .tool_choice import Function


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
        return _Watching(lambda start: self._grammar.processor(vocabulary, start), vocabulary, n_prompt, self._marker.encode())


def _opening(function: Function) -> str:
    return f'\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '


def _schema(function: Function) -> dict[str, Any]:
    given = function.get("parameters") if function.get("strict") else None
    return given or {"type": "object"}


class _Watching:
    """Waits for the marker, hands logits to the grammar until its object is complete, and waits again."""

    def __init__(self, begin: Callable[[int], Any], vocabulary: Vocabulary, n_prompt: int, marker: bytes) -> None:
        self._begin, self._vocabulary, self._marker = begin, vocabulary, marker
        self._inner: Any = None
        self._seen, self._end = n_prompt, b""  # tokens looked at; the last bytes of the text

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> Logits:
        for token in input_ids[self._seen :]:
            self._end = (self._end + self._vocabulary.piece(int(token)))[-4 * len(self._marker) :]
        self._seen = len(input_ids)
        if self._inner is None and self._end.endswith(self._marker):
            self._inner = self._begin(len(input_ids))
        if self._inner is None:
            return logits
        bound = self._inner(input_ids, logits.copy())
        open_tokens = np.isfinite(bound)
        open_tokens[sorted(self._vocabulary.end_tokens)] = False
        if open_tokens.any():
            return np.asarray(bound, np.float32)
        self._inner, self._end = None, b""  # nothing but the end may follow: the object is complete
        return logits

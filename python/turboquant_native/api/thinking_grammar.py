"""A grammar that binds the answer and leaves the thinking before it free."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.grammar import LlamaGrammar
from ..engine.sampling import Logits, LogitsProcessor
from ..engine.vocabulary import Vocabulary
from .call_grammar import WithinArguments, WithinCalls
from .reasoning import ThinkingTags, thinking_is_open, thinking_is_over, thinking_tags
from .tool_calls import family_of

Grammar = LlamaGrammar | WithinCalls | WithinArguments


def after_thinking(grammar: Grammar | None, template: str, prompt: str, demanded: bool = False) -> Any:
    """The grammar, waiting for the end of the thinking where the model thinks.

    Args:
        template: jinja2 text. prompt: what it rendered.
        demanded: the grammar is that of a call that the request demands.
    """
    begins = family_of(template).answer_begins
    if grammar is not None and begins and not demanded:
        return AfterThinking(grammar, ThinkingTags("", begins), is_open=True)
    tags = thinking_tags(template)
    if grammar is None or tags is None or thinking_is_over(prompt, tags):
        return grammar
    return AfterThinking(grammar, tags, thinking_is_open(prompt, tags))


class AfterThinking:
    """Has a grammar wait for the end of the thinking.

    Args:
        is_open: the prompt has opened the thinking. Otherwise the model may open it, where that is one token of its vocabulary.
    """

    def __init__(self, grammar: Grammar, tags: ThinkingTags, is_open: bool) -> None:
        self._grammar, self._tags, self._is_open = grammar, tags, is_open

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> LogitsProcessor:
        """A logits processor for one completion whose prompt has n_prompt tokens."""
        opening = -1 if self._is_open else vocabulary.id_of(self._tags.open)
        self._grammar.processor(vocabulary, n_prompt)  # an unusable grammar is an error at once, not behind the thinking
        return _Waiting(
            lambda start: self._grammar.processor(vocabulary, start), vocabulary, n_prompt, self._tags.close, opening, self._is_open
        )


class _Waiting:
    """Passes logits to the grammar's processor from where the thinking ends."""

    def __init__(self, begin: Callable[[int], Any], vocabulary: Vocabulary, n_prompt: int, close: str, opening: int, is_open: bool) -> None:
        self._begin, self._vocabulary, self._n_prompt = begin, vocabulary, n_prompt
        self._close, self._opening = close.encode(), opening
        self._thinking = is_open
        self._inner: Any = None if is_open else begin(n_prompt)
        self._seen, self._end = n_prompt, b""  # tokens looked at; the last bytes of the thinking

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> Logits:
        if len(input_ids) == self._n_prompt + 1 and not self._thinking and self._inner is not None and input_ids[-1] == self._opening:
            self._thinking, self._inner, self._seen = True, None, len(input_ids)
        if self._thinking:
            self._look_for_end(input_ids)
        if self._inner is None:
            logits[sorted(self._vocabulary.end_tokens)] = -np.inf  # an answer must follow
            return logits
        first, free = len(input_ids) == self._n_prompt, logits[self._opening]
        logits = self._inner(input_ids, logits)
        if first and self._opening >= 0:
            logits[self._opening] = free
        return logits

    def _look_for_end(self, input_ids: NDArray[np.intc]) -> None:
        for token in input_ids[self._seen :]:
            self._end = self._end[-len(self._close) :] + self._vocabulary.piece(int(token))
        self._seen = len(input_ids)
        if self._close in self._end:
            self._thinking, self._inner = False, self._begin(len(input_ids))

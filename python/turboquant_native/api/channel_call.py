"""A demanded call in a family whose answers stand in channels: the thinking stays free, the call's header is written for the model."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.grammar import GrammarProcessor, LlamaGrammar
from ..engine.sampling import Logits, LogitsProcessor
from ..engine.vocabulary import Vocabulary
from .tool_calls import Channels
from .tool_choice import Function

_NAME = re.compile(r"[\w.-]+")


class CallInChannel:
    """What an answer must be: thinking if the model opens it, then a call of one of these functions, whose arguments follow its schema.

    ValueError for a name that no header can have.
    """

    def __init__(self, functions: Sequence[Function], channels: Channels) -> None:
        self._channels = channels
        self._grammars = {
            str(function["name"]): LlamaGrammar.from_json_schema(function.get("parameters") or {"type": "object"}) for function in functions
        }
        for name in self._grammars:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the tool {name!r} cannot be demanded of this model: names are letters, digits, '_', '.' and '-'")

    @property
    def relaxed(self) -> list[str]:
        """What of the schemas is not constrained."""
        return [text for grammar in self._grammars.values() for text in grammar.relaxed]

    def processor(self, vocabulary: Vocabulary, n_prompt: int) -> LogitsProcessor:
        """A logits processor for one completion whose prompt has n_prompt tokens."""
        for grammar in self._grammars.values():
            grammar.processor(vocabulary, n_prompt)  # an unusable grammar is an error at once
        return _Writing(self._grammars, self._channels, vocabulary, n_prompt)


class _Writing:
    """Three states: within a header (some texts, as tokens, of which the model chooses one), thinking, arguments."""

    def __init__(self, grammars: dict[str, LlamaGrammar], channels: Channels, vocabulary: Vocabulary, n_prompt: int) -> None:
        self._grammars, self._channels, self._vocabulary, self._seen = grammars, channels, vocabulary, n_prompt
        self._close = channels.thinking_ends.encode()
        self._end = b""  # the last bytes of the thinking
        self._arguments: GrammarProcessor | None = None
        self._headers = self._calls("") | {self._tokens(channels.thinking): None}  # what is left of each -> the function; None: thinking

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._vocabulary.encode(text, special=True))

    def _calls(self, before: str) -> dict[tuple[int, ...], str | None]:
        return {self._tokens(before + self._channels.call(name)): name for name in self._grammars}

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> Logits:
        for place in range(self._seen, len(input_ids)):
            self._advance(int(input_ids[place]), place + 1)
        self._seen = len(input_ids)
        if self._arguments is not None:
            return self._arguments(input_ids, logits)
        if self._headers:
            allowed = sorted({header[0] for header in self._headers})
            kept = logits[allowed].copy()
            logits[:] = -np.inf
            logits[allowed] = kept
        else:
            logits[sorted(self._vocabulary.end_tokens - self._closing())] = -np.inf
        return logits

    def _closing(self) -> set[int]:
        """The token that ends the thinking may be one that ends answers too."""
        return {self._vocabulary.id_of(self._channels.thinking_ends)}

    def _advance(self, token: int, n_tokens: int) -> None:
        if self._arguments is not None:
            return
        if not self._headers:
            self._end = self._end[-len(self._close) :] + self._vocabulary.piece(token)
            if self._close in self._end:
                self._headers = self._calls(self._channels.next_message)
            return
        self._headers = {header[1:]: name for header, name in self._headers.items() if header[0] == token}
        if () in self._headers:
            name = self._headers.pop(())
            self._headers, self._end = {}, b""
            if name is not None:
                self._arguments = self._grammars[name].processor(self._vocabulary, n_tokens)
